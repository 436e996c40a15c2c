"""The demo: the whole loop on one machine, watched live and checked against the oracle at the end."""
