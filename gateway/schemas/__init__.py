"""What request bodies are made of, and the fields that other servers know."""
