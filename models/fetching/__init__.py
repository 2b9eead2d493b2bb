"""Fetches model files: parses their names, tries their sources, and stores them."""
