"""Other engines on the same feed: each a program of its own, run in an environment of its own, that prints one JSON line.

They import nothing of Millstream but its schema files.
"""
