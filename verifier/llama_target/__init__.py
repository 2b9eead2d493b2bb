"""The embedded target: llama.cpp in this process, on one thread of its own.

Read it in this order: settings, judging (what becomes of a pass's logits), engine (the thread's
side), slot (one session), scheduler (who goes when), target (the port).
"""

from verifier.llama_target.settings import LlamaSettings
from verifier.llama_target.target import LlamaTarget

__all__ = ["LlamaSettings", "LlamaTarget"]
