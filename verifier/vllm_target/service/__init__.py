"""The service's side of vLLM: the port, the engine, and what is asked of it."""
