"""Shows that the edge generates what the target generates."""
