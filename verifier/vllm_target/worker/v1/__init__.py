"""Hooks into Model Runner V1, which vLLM runs on CPUs."""
