"""Shared by all rooms of the bench: prompts, hosts, results, speeds, and their files."""
