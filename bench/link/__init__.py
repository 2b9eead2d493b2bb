"""Emulates a link between the two ends, with delay, jitter, rate and loss."""
