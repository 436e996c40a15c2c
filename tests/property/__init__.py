"""Laws that hold for every log that Hypothesis can think of."""
