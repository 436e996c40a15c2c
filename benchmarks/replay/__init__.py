"""How fast a generation is rebuilt, compared and turned into training rows."""
