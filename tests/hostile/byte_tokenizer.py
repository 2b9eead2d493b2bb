"""A tokenizer file as a verifier sends one: its tokens are bytes, its pattern is any."""

from __future__ import annotations

import tokenizers
from tokenizers import Regex, models, pre_tokenizers

from local_models.tokenizer_file import TokenizerFile


def made(split: str = " ") -> TokenizerFile:
    """Return a tokenizer whose tokens are bytes, and which splits texts at a pattern first."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = tokenizers.Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    parts = [pre_tokenizers.Split(Regex(split), "isolated"), byte_level]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(parts)  # type: ignore[assignment]
    return TokenizerFile("huggingface", tokenizer.to_str().encode())
