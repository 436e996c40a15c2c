"""What the store takes for a million active users and their items."""
