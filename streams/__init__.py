"""Live ingest: Faust agents take Kafka's records in batches and hand them to the online store, each exactly once."""
