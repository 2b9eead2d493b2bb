"""Writes what a model may say, and reads it in pieces: the message is put together as by a
client."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from hypothesis import strategies as st
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

from gateway.grammars import Tags
from gateway.output.detokenise import Detokeniser, Piece, StopConditions, TextDelta
from gateway.output.formats.base import ToolFormat
from gateway.output.message import CallArguments, CallStart, Parsed, ParsedMessage
from gateway.output.output_format import FORMATS, CallRules, FormatName, OutputFormats
from gateway.output.reading import Incoming, Steps
from gateway.ports import Delta, Statistics
from speculation.messages import TokenLogprob, Totals
from tests.gateway.scripted import END, ByteTokenizer

STRING = {"type": "string"}
INTEGER = {"type": "integer"}
Tools = Mapping[str, Mapping[str, object]]
TOOLS: Tools = {
    "weather": {
        "type": "object",
        "properties": {"city": STRING, "days": INTEGER, "when": {}},
        "required": ["city"],
    },
    "now": {"type": "object", "properties": {}},
}


@dataclass
class Call:
    id: str
    name: str
    arguments: str = ""


@dataclass
class Read:
    """The message so far."""

    content: str = ""
    reasoning: str = ""
    calls: list[Call] = field(default_factory=list)
    complete: bool = False

    def add(self, content: str, parsed: Parsed) -> None:
        self.content += content
        self.reasoning += parsed.reasoning
        for piece in parsed.calls:
            match piece:
                case CallStart():
                    assert piece.index == len(self.calls)
                    self.calls.append(Call(piece.id, piece.name))
                case CallArguments():
                    assert piece.index == len(self.calls) - 1
                    self.calls[piece.index].arguments += piece.text

    @property
    def decoded(self) -> list[tuple[str, object]]:
        """Return the calls with their arguments as values."""
        return [(call.name, json.loads(call.arguments)) for call in self.calls]


Parse = Callable[[Incoming, ParsedMessage], Steps[None]]


def run(parse: Parse, pieces: Iterable[str], *, parallel: bool = True) -> list[Read]:
    """Return the message after each piece, and at last the whole one."""
    ids = (f"id{number}" for number in itertools.count())
    message = ParsedMessage(lambda: next(ids), parallel=parallel)
    text = Incoming()
    steps = parse(text, message)
    next(steps, None)
    moments, whole = [], Read()
    for piece in (*pieces, None):
        text.feed(piece or "")
        text.ended = piece is None
        next(steps, None)
        whole.add(message.take_content()[0], message.take_parsed(0))
        whole.complete = message.complete
        moments.append(
            Read(whole.content, whole.reasoning, [Call(**vars(c)) for c in whole.calls])
        )
        if message.complete:
            break
    return [*moments, whole]


def moments(
    form: ToolFormat, pieces: Iterable[str], *, tools: Tools = TOOLS, parallel: bool = True
) -> list[Read]:
    """Return the message that is read by a format, after each piece, and at last the whole."""
    return run(lambda text, out: form.read(text, out, tools), pieces, parallel=parallel)


def read(
    form: ToolFormat, pieces: Iterable[str], *, tools: Tools = TOOLS, parallel: bool = True
) -> Read:
    return moments(form, pieces, tools=tools, parallel=parallel)[-1]


S = TypeVar("S", str, bytes, range)


def split(whole: S, cuts: Sequence[int]) -> list[S]:
    """Cut a text, bytes, or numbers anywhere."""
    ends = sorted({cut % (len(whole) + 1) for cut in cuts} | {len(whole)})
    return [whole[a:b] for a, b in itertools.pairwise([0, *ends])]


CUTS = st.lists(st.integers(0, 400), max_size=12)
THINK = Tags("<think>", "</think>")


# A call as models write it, in each format that has a grammar.

NAMES: Sequence[FormatName] = sorted(FORMATS.keys() - {"dsml", "harmony"})
"""These two have no grammar, and are compared with vLLM's parsers. In Harmony a text without a
channel is a header, and DeepSeek V4 closes no call that is cut."""


CALLS: Mapping[FormatName, str] = {
    "hermes": '<tool_call>\n{"name": "%s", "arguments": %s}\n</tool_call>',
    "llama": '<|python_tag|>{"name": "%s", "parameters": %s}',
    "mistral": "[TOOL_CALLS]%s[ARGS]%s",
    "qwen_coder": "<tool_call>\n<function=%s>%s</function>\n</tool_call>",
}
"""What a model writes for a name and arguments."""


def written(name: FormatName, city: str, days: int) -> str:
    """Return the call weather(city, days) as a model writes it."""
    if name == "pythonic":
        return f"[weather(city={city!r}, days={days})]"
    if name == "qwen_coder":
        values = (
            f"<parameter=city>\n{city}\n</parameter>\n<parameter=days>\n{days}\n</parameter>"
        )
        return CALLS[name] % ("weather", f"\n{values}\n")
    return CALLS[name] % ("weather", json.dumps({"city": city, "days": days}))


# Deltas of a model's bytes, and what is shown of them by one that reasons and calls tools.

TEMPLATE = "<think></think><tool_call></tool_call>"


def parse(
    deltas: Sequence[Delta], stops: Sequence[str] = (), *, parallel: bool = True
) -> list[TextDelta]:
    """Return what the Deltas show, up to the finish."""
    output_format = OutputFormats().find(ByteTokenizer(template=TEMPLATE))

    def detokeniser(piece: Piece) -> Detokeniser:
        return Detokeniser(piece, StopConditions(frozenset({END}), stops))

    reader = output_format.reader(detokeniser, (), CallRules(TOOLS, parallel))
    shown = []
    for delta in deltas:
        shown.append(reader.read(delta))
        if shown[-1].finish is not None:
            break
    return shown


def grouped(data: bytes, cuts: Sequence[int] = (), *, logprobs: bool = False) -> list[Delta]:
    """Return Deltas with the bytes as tokens, END as the last token, and a finish."""
    tokens = [*data, END]
    return [
        Delta(
            tuple(tokens[at] for at in group),
            tuple(TokenLogprob(-1.0, ()) for _ in group) if logprobs else None,
            finish="stop" if group.stop == len(tokens) else None,
            statistics=Statistics(Totals(group.stop)),
        )
        for group in split(range(len(tokens)), cuts)
    ]


# Writes random texts that a grammar accepts, byte by byte, as a model under it would.

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
