"""What goes over gRPC: the .proto, and the modules that `make proto` generates beside it."""
