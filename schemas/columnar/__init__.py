"""Columns of a batch in numpy and numba: what must be done to every event, fast."""
