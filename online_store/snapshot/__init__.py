"""A file of records that ranking falls back on for items that the store no longer has."""
