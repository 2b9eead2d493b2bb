"""Distributions, the noise both ends share, and what a request changes of the logits."""
