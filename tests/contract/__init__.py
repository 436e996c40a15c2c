"""One protocol, every implementation of it, one suite."""
