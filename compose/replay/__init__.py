"""Replay as an operator runs it: `millstream replay ACTION`, a module for each group of actions."""
