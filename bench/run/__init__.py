"""Asks every arm the same questions over the same links."""
