"""What ranking reads: the near cache before the store, and when the store is left alone."""
