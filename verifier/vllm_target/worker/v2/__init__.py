"""Hooks into Model Runner V2, which vLLM runs on GPUs; its own sampler draws every row."""
