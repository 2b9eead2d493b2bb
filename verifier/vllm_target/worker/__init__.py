"""This part runs in vLLM's worker, and judges rows where the logits are."""
