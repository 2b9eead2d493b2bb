"""The part in every process of vLLM: it makes a plain `vllm serve MODEL` a verifier."""
