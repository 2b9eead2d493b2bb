"""Answers of the draft model alone, for when no verifier can be reached."""
