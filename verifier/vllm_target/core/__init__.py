"""This part runs in vLLM's core process: the scheduler with its sessions."""
