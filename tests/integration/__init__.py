"""Tests against a real Kafka and a real store."""
