"""Ingest against its peers: the same feed through Millstream, through other Python stream engines, and through no engine at all."""
