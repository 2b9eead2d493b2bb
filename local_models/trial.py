"""Checks grammars in a process of its own, which a grammar may crash or bring to its limits.

llguidance limits one step, but not everything: a schema of 80 bytes can take 5 s and 300 MB,
and one of 130 kB overflows the stack. So this process compiles a grammar before the service
does, and generates some texts with it, because many grammars show only then that they take
seconds or that no text satisfies them. The system ends the process at a limit, and the service
starts another one.

The process answers each JSON line with one: first a vocabulary, then Attempts.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from random import Random
from typing import Any, Final

import msgspec

from gateway.system import limit_memory, limited_cpu
from local_models.confined import serve
from local_models.errors import InvalidGrammar
from local_models.guidance import MatcherTokens, grammar_text, make_matcher, reason_of
from local_models.vocabulary import Vocabulary

CPU_S: Final = 1.0
"""An attempt takes at most this much processor time. Clients' grammars take 1 to 50 ms."""

MEMORY_BYTES: Final = 1 << 30
"""The process has at most this address space; an idle process uses a fifth of it."""

STACK_BYTES: Final = 2 << 20
"""An attempt has this stack: a quarter of a usual thread's, so that the service's suffices."""

TEXTS: Final = 3
TEXT_TOKENS: Final = 100
"""An attempt generates TEXTS texts of up to TEXT_TOKENS tokens."""

TRIED: Final = 512
"""This many of the shortest tokens are tried before the rest, and one of them is generated if
any may follow."""

MIN_BYTES: Final = 224
"""At least this many single bytes are tokens of any model that can write every text."""

_STRUCTURE: Final = b'"{}[],:0'
"""These bytes, if allowed, are generated in about every other position, so that a text reaches
its end."""

_LISTS: Final = ("prefixItems", "anyOf", "oneOf", "allOf")
_MAPS: Final = ("properties", "patternProperties", "$defs", "definitions")
_SINGLE: Final = ("items", "additionalProperties")
_SHARED: Final = ("$defs", "definitions", "x-guidance")


class Tokens(msgspec.Struct):
    """Tokens is a vocabulary of which special tokens and single bytes alone have a text, if
    these suffice. Ids keep their meaning, and it is built in a tenth of the time."""

    size: int
    pieces: dict[int, bytes]
    special: list[int]
    stop_tokens: list[int]

    @staticmethod
    def of(vocabulary: Vocabulary) -> Tokens:
        pieces = dict(enumerate(vocabulary.pieces))
        few = {t: p for t, p in pieces.items() if len(p) == 1 or t in vocabulary.special}
        alone = sum(len(piece) == 1 for piece in few.values())
        return Tokens(
            len(pieces),
            few if alone >= MIN_BYTES else pieces,
            sorted(vocabulary.special),
            sorted(vocabulary.stop_tokens),
        )

    @property
    def vocabulary(self) -> Vocabulary:
        pieces = tuple(self.pieces.get(token, b"") for token in range(self.size))
        return Vocabulary(pieces, frozenset(self.special), frozenset(self.stop_tokens))


class Attempt(msgspec.Struct):
    """An Attempt is a constraint to check, see `constraint`."""

    kind: str
    value: str | list[str] | bool


class TrialOutcome(msgspec.Struct):
    """An Outcome is the text of a valid grammar, or the place and reason of an error."""

    grammar: str = ""
    where: str = ""
    reason: str = ""


class Trial:
    """Compiles grammars over one vocabulary, and generates texts with them."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        ids = {piece: token for token, piece in enumerate(vocabulary.pieces)}
        self._structure = [ids[bytes([b])] for b in _STRUCTURE if bytes([b]) in ids]
        texts = (t for t in ids.values() if t not in vocabulary.stop_tokens)
        by_length = sorted(texts, key=lambda token: len(vocabulary.pieces[token]))
        self._texts = by_length[:TRIED]
        self._rest = by_length[TRIED:]
        self._tokenizer = MatcherTokens(vocabulary, lambda text: ())

    def attempt(self, attempt: Attempt) -> TrialOutcome:
        try:
            text = grammar_text(attempt.kind, attempt.value)
            make_matcher(self._tokenizer, text)
        except InvalidGrammar as error:
            path = ""
            if attempt.kind == "json":
                with suppress(RecursionError):
                    path = self._path(json.loads(str(attempt.value)), error.reason)
            return TrialOutcome(where=f"{attempt.kind}{path}", reason=error.reason)
        for seed in range(TEXTS):
            if reason := self._generate(text, Random(seed)):
                return TrialOutcome(where=attempt.kind, reason=reason)
        return TrialOutcome(text)

    def _generate(self, text: str, chance: Random) -> str:
        """Generate a text. Return the error in the grammar that this shows; "" if none."""
        matcher = make_matcher(self._tokenizer, text)
        for _ in range(TEXT_TOKENS):
            mask = matcher.compute_bitmask()
            if matcher.is_error():
                return reason_of(matcher).replace("NoExtensionBias", "no text satisfies it")
            tried = [self._texts, self._rest]
            if chance.random() < 0.5:
                tried.insert(0, self._structure)
            if not (token := next(filter(None, (_in(mask, each) for each in tried)), None)):
                return ""
            matcher.consume_token(chance.choice(token))
        return ""

    def _path(self, schema: Any, reason: str) -> str:  # noqa: ANN401
        """Return the path of the innermost schema that is invalid for the same reason."""
        shared = {name: schema[name] for name in _SHARED if name in schema}
        path = ""
        while part := self._wrong_part(schema, shared, reason):
            step, schema = part
            path = f"{path}.{step}"
        return path

    def _wrong_part(
        self, schema: object, shared: dict[str, Any], reason: str
    ) -> tuple[str, Any] | None:
        for step, inner in _inner(schema):
            alone = {**shared, **inner} if isinstance(inner, dict) else inner
            try:
                make_matcher(self._tokenizer, grammar_text("json", json.dumps(alone)))
            except InvalidGrammar as error:
                if error.reason == reason:
                    return step, inner
        return None


def _inner(schema: object) -> Iterator[tuple[str, Any]]:
    """Yield the schemas inside a schema, with their paths: definitions first, because a schema
    that refers to an invalid one is invalid too."""
    if not isinstance(schema, dict):
        return
    for name, inner in sorted(schema.items(), key=lambda item: item[0] not in _SHARED):
        if name in _SINGLE:
            yield name, inner
        if name in _MAPS and isinstance(inner, dict):
            yield from ((f"{name}.{key}", each) for key, each in inner.items())
        if name in _LISTS and isinstance(inner, list):
            yield from ((f"{name}.{index}", each) for index, each in enumerate(inner))


def _in(mask: bytes, tokens: Sequence[int]) -> list[int]:
    """Return the tokens whose bit in the mask is set."""
    return [token for token in tokens if mask[token >> 3] >> (token & 7) & 1]


def main() -> None:
    """Answer attempts until the input ends."""
    limit_memory(MEMORY_BYTES)
    threading.stack_size(STACK_BYTES)
    thread = ThreadPoolExecutor(1)
    trials: list[Trial] = []

    def answer(line: bytes) -> bytes:
        if not trials:
            trials.append(Trial(msgspec.json.decode(line, type=Tokens).vocabulary))
            return msgspec.json.encode(TrialOutcome())
        attempt = msgspec.json.decode(line, type=Attempt)
        with limited_cpu(CPU_S):
            return msgspec.json.encode(thread.submit(trials[0].attempt, attempt).result())

    serve(answer)


if __name__ == "__main__":
    main()
