"""Whole rebuilds, cutovers and rollbacks under live traffic: whether any request feels one, and what both generations hold afterwards."""
