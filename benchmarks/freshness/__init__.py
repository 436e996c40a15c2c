"""How old what a reader sees is: from an event's intended sending to its count in the store, at several rates."""
