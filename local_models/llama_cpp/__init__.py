"""Binds llama.cpp: loads it at first use, runs models, and finds the context that fits."""
