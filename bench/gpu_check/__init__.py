"""Checks in one command that PicoSpec works on a GPU host, and how fast it is there."""
