"""This part runs in the service: it starts vLLM, and sends and receives for it."""
