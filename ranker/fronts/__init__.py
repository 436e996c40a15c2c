"""Front ends of the ranker: how requests come in and answers go out. They decide nothing."""
