"""Bytes that must never change, each frozen in a file under data/."""
