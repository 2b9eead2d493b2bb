"""Measures what our own code takes on a host whose target's passes take a few milliseconds."""
