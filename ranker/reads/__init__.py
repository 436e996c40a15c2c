"""What ranking reads: the near cache before the store, when the store is left alone, what is popular, and what was answered."""
