"""Writes random texts that a grammar accepts, byte by byte, as a model under it would."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping

from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

END = 256
"""The token that ends a text; tokens 0 to 255 are bytes, and those after END are special."""

_CLOSING = b'"}])\n<>/'
"""Bytes that tend to end something; the walk prefers them, so that texts end."""


class _Bytes:
    eos_token_id, bos_token_id = END, None

    def __init__(self, special: Mapping[str, int]) -> None:
        self.tokens = [bytes([byte]) for byte in range(END)] + [b"<|end|>"]
        self.tokens += [text.encode() for text in special]
        self.special_token_ids = [END, *special.values()]

    def __call__(self, text: str | bytes) -> list[int]:
        return list(text if isinstance(text, bytes) else text.encode())


def ids(*markers: str) -> dict[str, int]:
    """Return the ids of markers that are special tokens."""
    return {marker: END + 1 + number for number, marker in enumerate(markers)}


class Grammar:
    def __init__(self, lark: str, special: Mapping[str, int] | None = None) -> None:
        special = special or {}
        self._spelling = {token: text.encode() for text, token in special.items()}
        wrapper = TokenizerWrapper(_Bytes(special))
        self._tokenizer = LLTokenizer(wrapper, n_vocab=END + 1 + len(special))
        self._lark = lark

    def _matcher(self) -> LLMatcher:
        matcher = LLMatcher(self._tokenizer, self._lark, log_level=0)
        if matcher.is_error():
            raise ValueError(matcher.get_error())
        return matcher

    def accepts(self, text: str) -> bool:
        """Tell whether a text without special tokens is accepted as a whole."""
        matcher, data = self._matcher(), list(text.encode())
        return matcher.try_consume_tokens(data) == len(data) and matcher.is_accepting()

    def write(self, chance: random.Random, limit: int = 4000) -> str:
        """Return a text; `limit` is the most bytes it may have."""
        matcher = self._matcher()
        written = b""
        for _ in range(limit):
            token = self._choose(matcher, chance)
            if token == END:
                return written.decode()
            written += self._spelling.get(token) or bytes([token])
            assert matcher.consume_token(token), matcher.get_error()
        raise AssertionError(f"the text does not end: {written.decode(errors='replace')}")

    def _choose(self, matcher: LLMatcher, chance: random.Random) -> int:
        if matcher.is_stopped():
            return END
        allowed = [token for token, bias in enumerate(matcher.compute_logit_bias()) if bias]
        likely = [t for t in allowed if t >= END or t in _CLOSING]
        plain = [t for t in allowed if 32 <= t < 127 and t not in b"\\"] or allowed
        return chance.choice(likely if likely and chance.random() < 0.4 else plain)


def validates(schema: Mapping[str, object], text: str) -> bool:
    """Tell whether a JSON text is valid under a schema, spaced in any way."""
    grammar = LLMatcher.grammar_from_json_schema(json.dumps(schema))
    matcher = LLMatcher(LLTokenizer(TokenizerWrapper(_Bytes({})), n_vocab=END + 1), grammar)
    data = list(text.encode())
    return matcher.try_consume_tokens(data) == len(data) and matcher.is_accepting()
