"""Measurements that anyone can rerun: what each says, how it is made, and what it came to, is in README.md."""
