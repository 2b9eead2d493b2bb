"""Distributions, the noise both ends share, and how a draft token is judged."""
