"""A target's tokenizer: its vocabulary, its chat template, and its file, sent and checked."""
