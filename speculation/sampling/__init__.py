"""Distributions, the noise that both ends share, and settings that change the logits."""
