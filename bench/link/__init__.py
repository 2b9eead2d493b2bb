"""An emulated link between the two ends, with delay, jitter, rate and loss."""
