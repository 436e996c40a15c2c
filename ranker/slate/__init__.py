"""Scores become a slate: who may be shown, in which order, and why."""
