"""What was served, by its telemetry: with what came of it, as training rows; and recomputed from the log, as proof."""
