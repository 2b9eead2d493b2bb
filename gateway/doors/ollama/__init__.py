"""Serves POST /api/chat and /api/generate, and the other paths that Ollama's clients use."""
