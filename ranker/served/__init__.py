"""By what requests are ranked at a time."""
