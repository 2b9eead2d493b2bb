"""A small vocabulary with every byte and some longer tokens, and a tokenizer that is greedy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import numpy as np

from local_models.grammars import Grammar, GrammarState
from local_models.guidance import MatcherTokens
from local_models.tokenizer import Tokenizer
from local_models.vocabulary import Vocabulary
from speculation.messages import Open, Sampling

_LONGER = (
    *["ab", "ba", "aab", "bb", "abab", "true", "false", "null", "name", "value", "é", "€"],
    *('"', '":', '": "', '", "', "{", '{"', '"}', "[", "]", ", ", ": ", "  ", "\n", " \n"),
    *("12", "100", "the", "</", "em"),
)
_PIECES = tuple(
    dict.fromkeys([*(bytes([b]) for b in range(256)), *(t.encode() for t in _LONGER)])
)
STOP, TAG = len(_PIECES), len(_PIECES) + 1
VOCABULARY = Vocabulary(
    (*_PIECES, b"<|end|>", b"<|tag|>"), frozenset({STOP, TAG}), frozenset({STOP}), STOP
)
V = len(VOCABULARY.pieces)


def greedy(text: str) -> list[int]:
    """Return the tokens of a text: always the longest that fits."""
    data, tokens = text.encode(), list[int]()
    ids = {piece: token for token, piece in enumerate(VOCABULARY.pieces[:STOP])}
    while data:
        size = next(n for n in range(min(8, len(data)), 0, -1) if data[:n] in ids)
        tokens.append(ids[data[:size]])
        data = data[size:]
    return tokens


class SmallEncoder:
    vocabulary = VOCABULARY
    raw_beginning = chat_beginning = ()

    def tokenize(self, text: str, special: bool) -> list[int]:
        return greedy(text)


TOKENIZER = Tokenizer(SmallEncoder(), None)
TOKENS = MatcherTokens(VOCABULARY, greedy)


def asking(**asked: object) -> Open:
    """Return a request that these constraints bind."""
    raw = {"structured_outputs": msgspec.Raw(msgspec.json.encode(asked))}
    return Open("m", "v", (1,), Sampling(extras=raw), 3, 20, (STOP,))


def allowed(state: GrammarState, output: Sequence[int]) -> set[int]:
    """Return the tokens that may follow."""
    masked = state.mask(np.zeros(V, np.float32), output)
    return set(np.flatnonzero(masked == 0.0).tolist())


def bytes_of(output: Sequence[int]) -> bytes:
    return b"".join(VOCABULARY.piece(token) for token in output)


def generated(
    grammar: Grammar, choose: Callable[[list[int]], int], most: int = 400
) -> list[int]:
    """Return an answer of the grammar: up to its stop token, or to `most` tokens."""
    state, output = grammar.begin(), list[int]()
    while len(output) < most and output[-1:] != [STOP]:
        output.append(choose(sorted(allowed(state, output))))
    return output


# Constraints that are wrong, or meant to take all of a service's time and memory.

LIMITS = "takes more than"


def _nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "integer"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


def _twice(depth: int) -> dict[str, Any]:
    """Each definition refers to the next one twice."""
    definitions: dict[str, Any] = {f"d{depth}": {"type": "integer"}}
    for i in range(depth):
        both = {name: {"$ref": f"#/$defs/d{i + 1}"} for name in "ab"}
        definitions[f"d{i}"] = {"type": "object", "properties": both, "required": ["a", "b"]}
    return {"$ref": "#/$defs/d0", "$defs": definitions}


def _chain(length: int) -> dict[str, Any]:
    links = {f"d{i}": {"$ref": f"#/$defs/d{i + 1}"} for i in range(length)}
    return {"$ref": "#/$defs/d0", "$defs": {**links, f"d{length}": {"type": "integer"}}}


def _text(pattern: str) -> dict[str, Any]:
    return {"type": "string", "pattern": pattern}


def _object(**properties: object) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties)}


def _rules(count: int, last: str, rule: str) -> str:
    chain = [rule.format(i, i + 1) for i in range(count)]
    return "\n".join([f"start: {rule[:1]}0", *chain, f"{rule[:1]}{count}: {last}"])


_ALL_OF_ANY = {
    "allOf": [
        {"anyOf": [{"type": "object", "properties": {f"k{i}{k}": {}}} for k in range(5)]}
        for i in range(20)
    ]
}

REJECTED: dict[str, tuple[str, Any, str]] = {
    "an unknown type": ("json", _object(a={"type": "banana"}), "json.properties.a: "),
    "deep down": (
        "json",
        {"anyOf": [{}, {"$ref": "#/$defs/x"}], "$defs": {"x": _object(b={"type": 5})}},
        "json.$defs.x.properties.b: ",
    ),
    "a type in an item": ("json", {"prefixItems": [{}, {"not": {}}]}, "json.prefixItems.1: "),
    "a keyword": ("json", {"if": {}, "then": {}}, "if"),
    "a format": ("json", {"type": "string", "format": "nope"}, "nope"),
    "an unknown reference": ("json", {"$ref": "#/$defs/a"}, "does not exist"),
    "a file": ("json", {"$ref": "file:///etc/passwd"}, "passwd"),
    "another host": ("json", {"$ref": "http://example.com/a.json"}, "example.com"),
    "itself": ("json", {"$ref": "#"}, "no text"),
    "a circle": ("json", {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#"}}}, "no text"),
    "never": ("json", {"type": "integer", "minimum": 5, "maximum": 4}, "greater"),
    "no value": ("json", {"enum": []}, "empty"),
    "an option": ("json", {"x-guidance": {"nope": 1}}, "nope"),
    "a pattern": ("json", _object(a=_text("(")), "json.properties.a: "),
    "looking ahead": ("json", _text("(?=a)"), "look"),
    "large numbers": ("json", {"type": "number", "maximum": 1e308, "minimum": 0}, "range"),
    "too deep": ("json", _nested(150), "recursion"),
    "a deep stack": ("json", _twice(1000), LIMITS),
    "a long chain": ("json", _chain(3000), LIMITS),
    "multiples": ("json", {"type": "integer", "multipleOf": 1000003}, LIMITS),
    "copies": ("json", _ALL_OF_ANY, "too large"),
    "many fields": ("json", {"properties": {f"p{i}": {} for i in range(4000)}}, ""),
    "hidden copies": ("json", _object(a=_text("^(((a{99}){99}){99}){99}$")), ""),
    "a group": ("regex", "(", "unclosed"),
    "groups": ("regex", "(" * 1000 + ")" * 1000, "regex"),
    "nothing": ("regex", r"[^\s\S]", "no text"),
    "no choice": ("choice", [], "empty"),
    "choices": ("choice", [f"{i}" for i in range(3000)], "items"),
    "a rule": ("grammar", "start: missing", "missing"),
    "brackets": ("grammar", f"start: {'(' * 5000}", "nested"),
    "left": ("grammar", "start: start", "no text"),
    "2**60 rules": ("grammar", _rules(60, '"a"', "t{0}: t{1} t{1}"), "items"),
    "2**60 terminals": ("grammar", _rules(60, '"a"', "T{0}: T{1} T{1}"), "too big"),
    "a chain of terminals": ("grammar", _rules(5000, '"a"', "T{0}: T{1}"), LIMITS),
    "a file of rules": ("grammar", '%import /etc/passwd\nstart: "a"', "import"),
    "no token": ("grammar", "start: <[99999999]>", "range"),
    "taken back": ("grammar", 'start: a\na[stop="x"]: /.*/', "`stop`"),
    "no grammar": ("grammar", "???", "grammar"),
}

COMPILED: dict[str, tuple[str, Any]] = {
    "deep": ("json", _nested(60)),
    "2**20 values": ("json", _twice(20)),
    "a tree": ("json", _object(a={"anyOf": [{"type": "null"}, {"$ref": "#"}]})),
    "long": ("json", {"type": "string", "minLength": 10**9}),
    "many": ("json", {"enum": [f"value {i}" for i in range(5000)]}),
    "automata": ("json", _text("^.*a.{1000}$")),
    "repetition": ("regex", "(a?){30}a{30}"),
    "plus": ("regex", "(a+)+b"),
    "choice": ("choice", ["", "a"]),
    "ambiguous": ("grammar", 'start: s\ns: s s | "a"'),
}
