"""Reads a target's tokenizer, vocabulary and chat template; sends and checks their file."""
