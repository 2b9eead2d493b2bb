"""The hooks of Model Runner V1, which vLLM runs on CPUs."""
