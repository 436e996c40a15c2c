"""A real Kafka and a real store on this machine, from wheels and Maven, without Docker and without a system Java."""
