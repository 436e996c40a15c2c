"""A store that cannot keep up while producers go on: what waits must wait in Kafka."""
