"""Finds how one model writes: the tags of its reasoning, and the format of its tool calls."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Final, Literal
from weakref import WeakKeyDictionary

from gateway.grammars import Tags
from gateway.json_schemas import Schemas
from gateway.output.answer_grammar import AllowedOutput, Constraint, grammar
from gateway.output.detokenise import Detokeniser, Piece
from gateway.output.formats.base import ToolFormat, pass_content, pass_input
from gateway.output.formats.dsml import Dsml
from gateway.output.formats.harmony import Harmony
from gateway.output.formats.hermes import Hermes
from gateway.output.formats.llama import Llama
from gateway.output.formats.mistral import Mistral
from gateway.output.formats.pythonic import Pythonic
from gateway.output.formats.qwen_coder import QwenCoder
from gateway.output.message import ParsedMessage
from gateway.output.output_parser import OutputParser
from gateway.output.reading import Incoming, Steps
from gateway.output.reasoning import is_opened, read_reasoning, tags_of
from gateway.ports import GatewayTokenizer

FormatName = Literal["dsml", "harmony", "hermes", "llama", "mistral", "pythonic", "qwen_coder"]

FORMATS: Final[Mapping[FormatName, ToolFormat]] = {
    "dsml": Dsml(),
    "harmony": Harmony(),
    "hermes": Hermes(),
    "llama": Llama(),
    "mistral": Mistral(),
    "pythonic": Pythonic(),
    "qwen_coder": QwenCoder(),
}

_SIGNS: Final[Sequence[tuple[re.Pattern[str], FormatName]]] = (
    (re.compile("<\uff5cDSML\uff5ctool_calls>"), "dsml"),
    (re.compile(r"<\|channel\|>analysis"), "harmony"),
    (re.compile(r"<function="), "qwen_coder"),
    (re.compile(r"\[TOOL_CALLS\]"), "mistral"),
    (re.compile(r"<tool_call>"), "hermes"),
    (re.compile(r'<\|python_tag\|>|"parameters": dictionary'), "llama"),
    (re.compile(r"\[\w+\(\w+="), "pythonic"),
)
"""The templates of a family contain its sign. The first sign found in a template decides."""


@dataclass(frozen=True, slots=True)
class CallRules:
    """Tells which calls an answer may have."""

    tools: Schemas
    """These functions may be called."""

    parallel: bool = True
    """True if several calls may be made."""

    custom: frozenset[str] = frozenset()
    """The names of the tools that take a text."""

    only: str | None = None
    """The answer is the text of this tool."""


@dataclass(frozen=True, slots=True)
class OutputFormat:
    """Defines how the model of a tokenizer writes."""

    tokenizer: GatewayTokenizer
    format: ToolFormat
    tags: Tags | None
    special: Mapping[str, int]
    """Maps the markers of calls and reasoning that are special tokens to their ids."""

    tag_tokens: tuple[int | None, int | None] = (None, None)
    """These tokens open and close reasoning; None if a tag is not a single token."""

    capabilities: tuple[str, ...] = ()
    """The model has these capabilities, in the terms of Ollama and llama-server."""

    def reader(
        self,
        detokeniser: Callable[[Piece], Detokeniser],
        prompt: Sequence[int],
        calls: CallRules,
        *,
        splits_reasoning: bool = True,
    ) -> Detokeniser | OutputParser:
        """Return the reader of the Deltas of a choice that continues `prompt`.

        If there can be neither calls nor reasoning, all text is content and nothing is parsed.
        """
        tools, tags = calls.tools, self.tags if splits_reasoning else None
        reads = bool(tools) or (self.format.has_channels and splits_reasoning)
        if not reads and tags is None:
            return detokeniser(self.tokenizer.piece)
        spell = self._spelling(
            (*(tags.pair if tags else ()), *(self.format.markers if reads else ()))
        )
        opened = tags is not None and is_opened(tags, prompt, spell)
        new_id = partial(_new_id, self.format.id_length)
        read = partial(self.format.read, tools=tools) if reads else pass_content
        if calls.only is not None:
            read = partial(pass_input, name=calls.only)
        return OutputParser(
            detokeniser(spell),
            ParsedMessage(new_id, parallel=calls.parallel, custom=calls.custom),
            partial(_parse, tags=tags, opened=opened, read=read),
        )

    def constraint(
        self, prompt: Sequence[int], allowed: AllowedOutput, *, splits_reasoning: bool = True
    ) -> Constraint | None:
        """Return the constraint of an answer to `prompt`: None, `allowed.content` or a grammar.

        Raises ValueError for what a grammar of this model cannot express.
        """
        tags = self.tags if splits_reasoning else None
        if not allowed.tools and (allowed.content is None or tags is None):
            return allowed.content
        opened = tags is not None and is_opened(tags, prompt, self._spelling(tags.pair))
        return {"grammar": grammar(allowed, self.format, self.special, tags, opened=opened)}

    def budget(self, prompt: Sequence[int], tokens: int) -> dict[str, int]:
        """Return the setting that ends the reasoning of an answer to `prompt` after `tokens`
        tokens. Raises ValueError if the model has no token for that."""
        opening, closing = self.tag_tokens
        if self.tags is None or closing is None:
            raise ValueError("the model has no token that ends its reasoning")
        limits = {"tokens": tokens, "closing": closing}
        if is_opened(self.tags, prompt, self._spelling(self.tags.pair)):
            return limits
        if opening is None:
            raise ValueError("the model has no token that begins its reasoning")
        return limits | {"opening": opening}

    def _spelling(self, markers: Sequence[str]) -> Piece:
        """Return a function that spells any token, even markers that are special tokens."""
        special, spelling = self.special, self.format.spelling
        seen = {special[t]: spelling.get(t, t).encode() for t in markers if t in special}
        piece = self.tokenizer.piece
        return lambda token: seen.get(token) or piece(token)


MAX_CAPABILITIES: Final = 64
"""The capabilities of models with so many tokenizers are remembered."""


_Parts = tuple[
    ToolFormat, Tags | None, Mapping[str, int], tuple[int | None, int | None], tuple[str, ...]
]
"""The fields of a Style, without its tokenizer."""


class OutputFormats:
    """Remembers the output formats of tokenizers, for as long as anybody else keeps these."""

    def __init__(self) -> None:
        self.capabilities: dict[str, tuple[str, ...]] = {}
        """By the digest of a tokenizer, which need not be in memory any more."""

        self._known: WeakKeyDictionary[GatewayTokenizer, _Parts] = WeakKeyDictionary()

    def known(self, tokenizer: GatewayTokenizer) -> OutputFormat | None:
        parts = self._known.get(tokenizer)
        return None if parts is None else OutputFormat(tokenizer, *parts)

    def remember(self, digest: str, output_format: OutputFormat) -> tuple[str, ...]:
        """Return the capabilities of an output format, and remember them by its tokenizer's
        digest, if
        that is known."""
        if digest:
            self.capabilities[digest] = output_format.capabilities
        if len(self.capabilities) > MAX_CAPABILITIES:
            del self.capabilities[next(iter(self.capabilities))]
        return output_format.capabilities

    def find(
        self, tokenizer: GatewayTokenizer, calls: FormatName | None = None
    ) -> OutputFormat:
        """Return and remember the output format. calls: the format of calls, None for the one
        that the chat template shows. Call this in a thread where a tokenizer may encode."""
        form = FORMATS[calls or choose(tokenizer.template)]
        tags = tags_of(tokenizer.template)
        written = tags.pair if tags else ()
        special = _special(tokenizer, (*written, *form.markers))
        spelt = [tokenizer.encode(t, begin=False) for t in written] or [[], []]
        opening, closing = (ids[0] if len(ids) == 1 else None for ids in spelt)
        can = tuple(_capabilities(tokenizer, thinks=tags is not None or form.has_channels))
        parts = form, tags, special, (opening, closing), can
        self._known[tokenizer] = parts
        return OutputFormat(tokenizer, *parts)


def choose(template: str) -> FormatName:
    """Return the format of calls that a template shows; by default the most common one."""
    return next((name for sign, name in _SIGNS if sign.search(template)), "hermes")


def _parse(
    text: Incoming,
    out: ParsedMessage,
    *,
    tags: Tags | None,
    opened: bool,
    read: Callable[[Incoming, ParsedMessage], Steps[None]],
) -> Steps[None]:
    if tags is not None:
        yield from read_reasoning(text, out, tags, opened=opened)
    yield from read(text, out)


def _special(tokenizer: GatewayTokenizer, texts: Sequence[str]) -> dict[str, int]:
    """Return the ids of the texts that are special tokens; a BOS may precede each text."""
    tokens = {text: tokenizer.encode(text, special=True) for text in texts}
    return {t: ids[-1] for t, ids in tokens.items() if not any(map(tokenizer.piece, ids))}


def _capabilities(tokenizer: GatewayTokenizer, *, thinks: bool) -> Iterator[str]:
    yield "completion"
    if tokenizer.takes_tools:
        yield "tools"
    if thinks:
        yield "thinking"
    with suppress(ValueError):
        tokenizer.infill("", "")
        yield "insert"


def _new_id(length: int | None) -> str:
    unique = uuid.uuid4().hex
    return f"call_{unique}" if length is None else unique[:length]
