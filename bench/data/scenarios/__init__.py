"""The scenarios are scripted conversations about this repository's files, as of one commit."""
