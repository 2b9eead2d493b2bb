"""Checks drafts against the target in batches, and streams back what the target says."""
