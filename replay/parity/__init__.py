"""Whether two generations say the same of everybody, and how far each feature is off where they do not."""
