"""From a rank request to a ranked response: features are read, scored and put in order."""
