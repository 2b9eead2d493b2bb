"""How one model writes: the tags of its reasoning, and the format of its tool calls."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from gateway.detokenise import Detokeniser
from gateway.output.formats.base import Format, pass_content
from gateway.output.formats.choose import FORMATS, FormatName, choose
from gateway.output.incoming import Incoming, Steps
from gateway.output.message import Message
from gateway.output.parser import OutputParser
from gateway.output.reasoning import Tags, is_opened, read_reasoning, tags_of
from gateway.output.schemas import Schemas
from gateway.ports import Tokenizer


@dataclass(frozen=True, slots=True)
class Style:
    tokenizer: Tokenizer
    format: Format
    tags: Tags | None
    special: Mapping[str, int]
    """The markers of calls and reasoning that are special tokens in this model."""

    def reader(
        self,
        prompt: Sequence[int],
        tools: Schemas,
        *,
        parallel: bool,
        stop_tokens: frozenset[int],
        stops: Sequence[str],
    ) -> Detokeniser | OutputParser:
        """Return what reads the Deltas of one choice.

        Where there can be neither calls nor reasoning, all text is content and nothing is
        parsed. tools: what may be called; parallel: more than once.
        """
        piece = self.tokenizer.piece
        if not tools and self.tags is None:
            return Detokeniser(piece, stop_tokens=stop_tokens, stops=stops)
        shown = self._shown(self.format.markers if tools else ())

        def spell(token: int) -> bytes:
            return shown.get(token) or piece(token)

        opened = self.tags is not None and is_opened(self.tags, prompt, spell)
        return OutputParser(
            Detokeniser(spell, stop_tokens=stop_tokens, stops=stops),
            Message(partial(_new_id, self.format.id_length), parallel=parallel),
            partial(self._parse, tools=tools, opened=opened),
        )

    def _shown(self, markers: Sequence[str]) -> dict[int, bytes]:
        """Return the spelling of the special tokens that a parser must see."""
        texts = (*markers, *_texts(self.tags))
        return {self.special[text]: text.encode() for text in texts if text in self.special}

    def _parse(
        self, text: Incoming, out: Message, *, tools: Schemas, opened: bool
    ) -> Steps[None]:
        if self.tags is not None:
            yield from read_reasoning(text, out, self.tags, opened=opened)
        if tools:
            yield from self.format.read(text, out, tools)
        else:
            yield from pass_content(text, out)


def style_of(tokenizer: Tokenizer, name: FormatName | None = None) -> Style:
    """Return the style of a tokenizer's model; `name` replaces what its template tells.

    It tokenises, so it is called where gateway.ports.TokenizerSource allows that.
    """
    form = FORMATS[name or choose(tokenizer.template)]
    tags = tags_of(tokenizer.template)
    return Style(tokenizer, form, tags, _special(tokenizer, (*form.markers, *_texts(tags))))


def _texts(tags: Tags | None) -> tuple[str, ...]:
    return () if tags is None else (tags.opening, tags.closing)


def _special(tokenizer: Tokenizer, texts: Sequence[str]) -> dict[str, int]:
    """Return those of the texts that are special tokens. A BOS may come before each."""
    tokens = {text: tokenizer.encode(text, special=True) for text in texts}
    return {t: ids[-1] for t, ids in tokens.items() if not any(map(tokenizer.piece, ids))}


def _new_id(length: int | None) -> str:
    unique = uuid.uuid4().hex
    return f"call_{unique}" if length is None else unique[:length]
