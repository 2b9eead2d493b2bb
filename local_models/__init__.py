"""Fetches, opens and runs GGUF models, and reads their tokenizers."""
