"""Measures: every arm in one interleaved run, and a simulator of the product's own machines."""
