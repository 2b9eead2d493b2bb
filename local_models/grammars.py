"""A client's constraint on the text of an answer, the grammar made of it, and its state."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from typing import Final, Self
from weakref import ref

import msgspec
import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper, grammar_from
from numpy.typing import NDArray

from local_models.errors import GrammarFailed, InvalidGrammar
from local_models.llama_cpp.model import common_prefix
from local_models.vocabulary import Vocabulary
from speculation.untrusted import Malformed, decode_json

# A client constrains the text of an answer in exactly one of five ways.

NAME: Final = "structured_outputs"
"""An Open asks for a grammar by the extra of this name."""

MAX_BYTES: Final = 256 * 1024
"""A constraint has at most this many bytes as JSON. The tools of a large agent take 100 kB in
one grammar."""


class Constraint(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A Constraint is the extra `structured_outputs` of a request."""

    json: msgspec.Raw = msgspec.Raw()
    json_object: bool | None = None
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None

    @classmethod
    def of(cls, data: bytes) -> Self:
        """Read a constraint from JSON. Raises InvalidGrammar."""
        if len(data) > MAX_BYTES:
            raise InvalidGrammar("", f"larger than {MAX_BYTES} bytes")
        try:
            constraint = decode_json(data, cls)
        except Malformed as error:
            raise InvalidGrammar("", str(error)) from None
        if len(constraint._kinds) != 1:
            raise InvalidGrammar("", f"exactly one of {', '.join(cls.__struct_fields__)}")
        if constraint.kind == "json" and not bytes(constraint.json).startswith(b"{"):
            raise InvalidGrammar("json", "a schema is an object")
        if constraint.json_object is False:
            raise InvalidGrammar("json_object", "only true has a meaning")
        if constraint.choice is not None and not constraint.choice:
            raise InvalidGrammar("choice", "empty")
        return constraint

    @property
    def kind(self) -> str:
        return self._kinds[0]

    @property
    def value(self) -> str | list[str] | bool:
        """Return the constraint's value; a JSON schema is the text that the client sent."""
        value = getattr(self, self.kind)
        return bytes(value).decode() if isinstance(value, msgspec.Raw) else value

    @property
    def _kinds(self) -> list[str]:
        values = {name: getattr(self, name) for name in self.__struct_fields__}
        return [name for name, value in values.items() if value not in (None, msgspec.Raw())]


# Binds llguidance. No other module imports it.
#
# vLLM's backend `guidance` uses the same library, so a grammar has the same meaning at either
# target and at the edge. Where a grammar allows only one text, llguidance allows only the
# tokens in which the target's own tokenizer writes that text, as a model would write it.

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
    """The tokens as llguidance needs them.

    llguidance's tokenizer refers to its source through Rust, where Python does not look for
    cycles. So the source refers to these tokens weakly, and a Grammar keeps them.
    """

    def __init__(self, vocabulary: Vocabulary, tokenize: Tokenize) -> None:
        source = TokenizerWrapper(_Source(vocabulary, tokenize, ref(self)))
        stops = sorted(vocabulary.stop_tokens)
        self.inner = LLTokenizer(source, eos_token=stops or None, slices=_SLICES)


def make_tokenizer(vocabulary: Vocabulary, tokenize: Tokenize) -> MatcherTokens:
    """Return the tokens as llguidance needs them. This takes 0.4 s of processor time for 152k
    tokens, during which no other Python thread runs."""
    return MatcherTokens(vocabulary, tokenize)


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


# A Grammar is compiled once, and a GrammarState is the position of an answer in it.

Logits = NDArray[np.float32]


class Grammar:
    """A Grammar has passed its check. Raises InvalidGrammar.

    All its states share one lexer, which grows with the texts it has seen.
    """

    def __init__(self, tokens: MatcherTokens, text: str) -> None:
        self._kept = tokens  # its matchers do not keep them
        self._beginning = make_matcher(tokens, text)
        self.is_spent = False
        """True once a limit was reached: the grammar must then be compiled again."""

    def begin(self) -> GrammarState:
        """Return the state of an answer without tokens, for one thread at a time."""
        return GrammarState(self, self._beginning.deep_copy())


class GrammarState:
    """A GrammarState is an answer's position: a function of the grammar and the output tokens.

    Each method raises GrammarFailed if the grammar reaches a limit. The state is useless then.
    """

    def __init__(self, grammar: Grammar, matcher: Matcher) -> None:
        self._grammar = grammar
        self._matcher = matcher
        self._tokens: list[int] = []  # consumed by the matcher
        self.is_outside = False
        """True if the grammar does not allow the tokens of the last `follow`."""

        self._forced: list[int] | None = None

    def follow(self, output: Sequence[int]) -> None:
        """Move to the position after these tokens, which are all output tokens before it."""
        tokens = list(output)
        kept = common_prefix(self._tokens, tokens)
        if kept < len(self._tokens):
            self._check(self._matcher.rollback(len(self._tokens) - kept))
            del self._tokens[kept:]
            self._forced = None
        more = tokens[kept:]
        taken = self._matcher.try_consume_tokens(more) if more else 0
        self._check(not self._matcher.is_error())
        self._tokens += more[:taken]
        self.is_outside = taken < len(more)
        if more:
            foreseen = (self._forced or [])[: len(more)] == more
            self._forced = (self._forced or [])[len(more) :] or None if foreseen else None

    def mask(self, logits: Logits, output: Sequence[int]) -> Logits:
        """Return logits (float32[V]) with -inf for each token that may not follow `output`.

        Stop tokens may follow where the grammar may end. After its end nothing is masked.
        """
        self.follow(output)
        if self.is_outside:
            self._check(self._matcher.is_stopped())
            return logits
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        self._check(not self._matcher.is_error())
        allowed = np.unpackbits(bits, count=len(logits), bitorder="little").view(np.bool_)
        return np.where(allowed, logits, np.float32(-np.inf)) if allowed.any() else logits

    def forced(self) -> int | None:
        """Return the only token that the grammar allows here if it forces text, else None."""
        if self.is_outside or self._matcher.is_stopped():
            return None
        if self._forced is None:
            self._forced = self._matcher.compute_ff_tokens()
            self._check(not self._matcher.is_error())
        return self._forced[0] if self._forced else None

    def count_allowed(self, tokens: Sequence[int]) -> int:
        """Return the number of these tokens that may follow here, one after the other."""
        return 0 if self.is_outside else self._matcher.validate_tokens(list(tokens))

    def _check(self, succeeded: bool) -> None:
        if not succeeded:
            self._grammar.is_spent = True
            reason = reason_of(self._matcher) or "the text has left it"
            raise GrammarFailed(f"the grammar cannot go on: {reason}")
