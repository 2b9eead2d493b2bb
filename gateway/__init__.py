"""The OpenAI face. Knows one port, `Engine`; knows nothing of speculation."""
