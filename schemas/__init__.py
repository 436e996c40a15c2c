"""What an event is, what it changes, and what a feature is: pure definitions without clock, randomness or I/O."""
