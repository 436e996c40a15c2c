"""The lake sink: every topic of ours into a Delta table of its own, each record once."""
