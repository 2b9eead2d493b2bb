"""An emulated link between the two ends: delay, jitter, rate and loss."""
