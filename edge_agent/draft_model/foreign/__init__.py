"""A draft model whose vocabulary is not the target's: both work on the same text."""
