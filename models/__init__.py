"""GGUF models: how they are fetched, opened and decoded, and what their tokens are."""
