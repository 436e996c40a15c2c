"""The Kafka front end: who reads requests, and who sends what is said of them."""
