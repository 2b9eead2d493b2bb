"""Judges draft tokens with the target in batches, and streams back the committed tokens."""
