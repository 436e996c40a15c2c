"""Real workers, a real Kafka and a real store under faults: `make chaos-ingest`."""
