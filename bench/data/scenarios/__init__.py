"""Scripted conversations about files of this repository, as of one commit."""
