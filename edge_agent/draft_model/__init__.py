"""The small model that drafts, and the thread it runs in."""
