"""What fills a generation: many events summed at once, their records merged here and written whole."""
