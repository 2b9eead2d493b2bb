"""The part that runs in vLLM's worker: it judges rows where the logits are."""
