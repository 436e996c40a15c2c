"""The servers behind an online store, whether one, several behind sentinels, or a cluster."""
