"""llama.cpp: its library at first use, a model with its KV slots, the context that fits."""
