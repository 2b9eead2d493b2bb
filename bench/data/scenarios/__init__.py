"""Scripted conversations over files of this repository, as they were at one commit."""
