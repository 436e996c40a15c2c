"""gRPC on the loop of this process: all that has come in is in the ranker's queue at once, a batch's answers leave together."""
