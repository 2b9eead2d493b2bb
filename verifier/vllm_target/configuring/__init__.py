"""This part runs in every process of vLLM, and makes a plain `vllm serve MODEL` a verifier."""
