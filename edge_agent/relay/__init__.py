"""Passes on requests that this edge does not speed up, under its own keys and limits."""
