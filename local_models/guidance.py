"""This module alone imports llguidance, which turns constraints into grammars, and compiles
those to matchers over a vocabulary's tokens.

vLLM's backend `guidance` uses the same library, so a grammar has the same meaning at either
target and at the edge. Where a grammar allows only one text, llguidance allows only the
tokens in which the target's own tokenizer writes that text, as a model would write it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from typing import Final
from weakref import ref

from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper, grammar_from

from local_models.errors import InvalidGrammar
from local_models.vocabulary import Vocabulary

Matcher = LLMatcher
Tokenize = Callable[[str], Sequence[int]]
"""A Tokenize returns the tokens of a text, in which no marker is special."""

Value = str | list[str] | bool

_LIMITS: Final = LLParserLimits(verbose_errors=False)
"""llguidance limits one step by these. `trial` limits the rest."""

_SLICES: Final = [r'[^"\\\x00-\x1F\x7F]{1,30}']
"""Tokens that continue a JSON string are treated as one set, so that a mask within a string of
limited length takes a seventh of the time (0.4 instead of 2.8 ms with 152k tokens). The other
three sets of llguidance's default helped none of ten schemas, and double the start time."""

_MARK: Final = "\x02"
"""Hardly any token contains this character together with others."""

_UNSUPPORTED: Final = re.compile(
    r"^[ \t]*[?!]?[\w-]+[ \t]*\[.*\b(stop|max_tokens|temperature)[ \t]*=.*\][ \t]*:",
    re.MULTILINE,
)
"""Matches a Lark rule with an attribute that llguidance cannot roll back, as it must after
rejected draft tokens, or that it leaves to the sampler."""


def grammar_text(kind: str, value: Value) -> str:
    """Return a constraint as a grammar of llguidance. Raises InvalidGrammar.

    A constraint of the kind `grammar` is in Lark or GBNF.
    """
    if kind == "json_object":
        return LLMatcher.grammar_from_json_schema('{"type": "object"}')
    if kind == "choice":
        return grammar_from("choice", json.dumps(value))
    if not isinstance(value, str):
        raise InvalidGrammar(kind, "not a text")
    if kind == "json":
        return LLMatcher.grammar_from_json_schema(value)
    if kind == "regex":
        return LLMatcher.grammar_from_regex(value)
    if match := _UNSUPPORTED.search(value):
        raise InvalidGrammar(kind, f"the attribute `{match[1]}` of a rule is not supported")
    try:
        return grammar_from("grammar", value)
    except ValueError as error:
        raise InvalidGrammar(kind, str(error)) from error


class MatcherTokens:
    """The tokens as llguidance needs them. To make them takes 0.4 s of processor time for 152k
    tokens, during which no other Python thread runs.

    llguidance's tokenizer refers to its source through Rust, where Python does not look for
    cycles. So the source refers to these tokens weakly, and a Grammar keeps them.
    """

    def __init__(self, vocabulary: Vocabulary, tokenize: Tokenize) -> None:
        source = TokenizerWrapper(_Source(vocabulary, tokenize, ref(self)))
        stops = sorted(vocabulary.stop_tokens)
        self.inner = LLTokenizer(source, eos_token=stops or None, slices=_SLICES)


def make_matcher(tokens: MatcherTokens, text: str) -> Matcher:
    """Compile a grammar; other threads run meanwhile. Raises InvalidGrammar."""
    matcher = LLMatcher(tokens.inner, text, log_level=0, limits=_LIMITS)
    if matcher.is_error():
        raise InvalidGrammar("", reason_of(matcher))
    return matcher


def reason_of(matcher: Matcher) -> str:
    """Return the reason why a matcher failed, in one line."""
    error = re.split("<backtrace>|<non-verbose/>", matcher.get_error())[0]
    return " ".join(error.split())[:300]


class _Source:
    """Implements the interface of a tokenizer that TokenizerWrapper needs."""

    bos_token_id = None

    def __init__(
        self, vocabulary: Vocabulary, tokenize: Tokenize, owner: ref[MatcherTokens]
    ) -> None:
        self.tokens = vocabulary.pieces
        self.special_token_ids = sorted(vocabulary.special)
        self.eos_token_id = min(vocabulary.stop_tokens, default=None)
        self._tokenize = tokenize
        self._owner = owner

    def __call__(self, text: str) -> list[int]:
        """Return tokens with exactly the bytes of a text.

        Some tokenizers put a space before any text, but not before text after a mark.
        """
        data = text.encode()
        if self._bytes(tokens := self._tokenize(text)) == data:
            return list(tokens)
        marked = self._tokenize(_MARK + text)
        cuts = (marked[cut:] for cut in range(1, len(marked)))
        tokens_of_text = next((tokens for tokens in cuts if self._bytes(tokens) == data), None)
        if tokens_of_text is None and (owner := self._owner()) is not None:
            tokens_of_text = owner.inner.greedy_tokenize(text)
        return list(tokens_of_text or ())

    def _bytes(self, tokens: Sequence[int]) -> bytes:
        return b"".join(self.tokens[token] for token in tokens)
