"""A draft model whose vocabulary is not the target's; both models work on the same text."""
