"""Converts chats and raw prompts to a target's tokens.

* Only the chat template makes special tokens. A marker such as <|im_end|> in a message stays
  text: a sentinel character is put into it before rendering and removed from the result.
* A rendered chat without sentinels is tokenised as a whole. Otherwise the text between two
  markers is tokenised at once, as it is when the whole string is tokenised.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from types import MappingProxyType
from typing import Final, Protocol

from models.chat_template import ChatTemplate, Json
from models.vocabulary import Vocabulary

_NONE: Final[Json] = MappingProxyType({})


class Encoder(Protocol):
    """A model's own way from text to token ids."""

    @property
    def vocabulary(self) -> Vocabulary: ...

    @property
    def begins_raw(self) -> tuple[int, ...]:
        """The tokens that begin every raw prompt."""

    @property
    def begins_chat(self) -> tuple[int, ...]:
        """The tokens that begin every chat, whether or not the template writes them."""

    def tokenize(self, text: str, special: bool) -> list[int]:
        """Return the tokens of text alone. special: markers become special tokens."""


class Tokenizer:
    """The tokenizer of one target. template: None if its model was not made for chats."""

    def __init__(self, encoder: Encoder, template: ChatTemplate | None) -> None:
        self.vocabulary = encoder.vocabulary
        self._encoder = encoder
        self._template = template
        self._markers = _any_of(self.vocabulary.markers)

    @property
    def template(self) -> str:
        """The chat template's text; empty if there is none."""
        return self._template.text if self._template else ""

    def chat(
        self, messages: Sequence[Json], *, tools: Sequence[Json] = (), options: Json = _NONE
    ) -> list[int]:
        """Return the chat's tokens, with the assistant's turn opened, or raise ValueError.

        See gateway.ports.Tokenizer.
        """
        if self._template is None:
            raise ValueError("the model has no chat template; use /v1/completions")
        given = {"messages": messages, "tools": tools, "options": options}
        sentinel = _unused("".join(_texts(given)))
        safe = {name: self._break(value, sentinel) for name, value in given.items()}
        rendered = self._template.render(**safe)  # type: ignore[arg-type]  # as it was given
        if sentinel in rendered:
            tokens = list(self._tokens(rendered, sentinel))
        else:
            tokens = self._encoder.tokenize(rendered, True)
        return _beginning(self._encoder.begins_chat, tokens)

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Return the tokens of a raw prompt. special: markers in it become special tokens."""
        return _beginning(self._encoder.begins_raw, self._encoder.tokenize(text, special))

    def piece(self, token: int) -> bytes:
        """Return a token's UTF-8 bytes, perhaps part of a character; b"" if it is special."""
        return self.vocabulary.piece(token)

    def _break(self, value: object, sentinel: str) -> object:
        """Return a JSON value whose texts hold no marker: a sentinel is in each."""
        match value:
            case str():
                return self._markers.sub(lambda at: at[0][0] + sentinel + at[0][1:], value)
            case Mapping():
                break_ = partial(self._break, sentinel=sentinel)
                return {break_(k): break_(v) for k, v in value.items()}
            case list() | tuple():
                return [self._break(item, sentinel) for item in value]
        return value

    def _tokens(self, rendered: str, sentinel: str) -> Iterator[int]:
        for part in self._markers.split(rendered):
            if part in self.vocabulary.markers:
                yield self.vocabulary.markers[part]
            elif text := part.replace(sentinel, ""):
                yield from self._encoder.tokenize(text, False)


def _beginning(begin: tuple[int, ...], tokens: list[int]) -> list[int]:
    return tokens if tuple(tokens[: len(begin)]) == begin else [*begin, *tokens]


def _any_of(texts: Iterable[str]) -> re.Pattern[str]:
    """Return a pattern whose group is the longest of the texts, as tokenizers match them."""
    longest_first = sorted(texts, key=lambda text: (-len(text), text))
    return re.compile(f"({'|'.join(map(re.escape, longest_first)) or '(?!)'})")


def _texts(value: object) -> Iterator[str]:
    """Yield every text of a JSON value, and the names of its fields."""
    match value:
        case str():
            yield value
        case Mapping():
            for item in chain(value, value.values()):
                yield from _texts(item)
        case list() | tuple():
            for item in value:
                yield from _texts(item)


def _unused(text: str) -> str:
    """Return a private-use character that the text does not contain. Raises ValueError."""
    used = set(text)
    unused = (chr(code) for code in range(0xE000, 0xF8FF) if chr(code) not in used)
    if (sentinel := next(unused, None)) is None:
        raise ValueError("the messages use every private-use character")
    return sentinel
