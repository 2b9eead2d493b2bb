"""GGUF models: where they come from, how they are opened, what their tokens are."""
