"""Where state lives: one packed record an entity, and beside the records the offsets that they stand for."""
