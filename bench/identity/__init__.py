"""Checks that an edge generates the same text as the target alone."""
