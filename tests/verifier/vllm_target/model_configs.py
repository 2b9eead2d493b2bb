"""Configurations of models that vLLM runs, without weights."""

from __future__ import annotations

GENERATES = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64,
    "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 2, "head_dim": 32, "vocab_size": 256, "torch_dtype": "float32",
    "max_position_embeddings": 256,
}  # fmt: skip
EMBEDS = {
    "architectures": ["BertModel"], "model_type": "bert", "hidden_size": 64,
    "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
    "vocab_size": 256, "torch_dtype": "float32", "max_position_embeddings": 256,
}  # fmt: skip
EXPERTS = GENERATES | {
    "architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "num_local_experts": 2,
}  # fmt: skip
RECURRENT = {
    "architectures": ["MambaForCausalLM"], "model_type": "mamba", "hidden_size": 64,
    "intermediate_size": 128, "num_hidden_layers": 1, "state_size": 16, "conv_kernel": 4,
    "expand": 2, "time_step_rank": 4, "vocab_size": 256, "torch_dtype": "float32",
}  # fmt: skip
