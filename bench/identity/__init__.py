"""Shows that the edge says what the target says."""
