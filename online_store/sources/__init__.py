"""What an ingest worker knows of each source that it reads."""
