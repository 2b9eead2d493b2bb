"""Measures every arm in one interleaved run, and simulates them with the product's machines."""
