"""Serves POST /completion, /completions and /infill, as llama-server does."""
