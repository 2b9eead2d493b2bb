"""POST /api/chat and /api/generate, and what else Ollama's clients ask for."""
