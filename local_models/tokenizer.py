"""Converts chats and raw prompts to a target's tokens.

* Only the chat template makes special tokens. A marker such as <|im_end|> in a message stays
  text: it is split by a sentinel before rendering, which is removed from the result. So a
  template does not find its special tokens in messages, and shows them as text.
* A rendered chat without sentinels is tokenised as a whole. Otherwise the text between two
  markers is tokenised in one piece, as it is when the whole string is tokenised.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property, partial
from itertools import chain
from types import MappingProxyType
from typing import Any, Final, Protocol

from local_models.infill import InfillFormat, infill_format
from local_models.markers import Markers
from local_models.renderer import Overrun, Renderer
from local_models.template import MAX_BYTES, ChatTemplate
from local_models.template_messages import Json, shaped, system_first
from local_models.vocabulary import Vocabulary

_NONE: Final[Json] = MappingProxyType({})
CONTINUES: Final = "continue_final_message"
"""With this option the answer continues the last message: the chat ends with its content,
whatever the template writes after it."""


class Encoder(Protocol):
    """An Encoder is a model's own conversion of text to token ids."""

    @property
    def vocabulary(self) -> Vocabulary: ...

    @property
    def raw_beginning(self) -> tuple[int, ...]:
        """Return the tokens that begin every raw prompt."""

    @property
    def chat_beginning(self) -> tuple[int, ...]:
        """Return the tokens that begin every chat, even if the template does not write them."""

    def tokenize(self, text: str, special: bool) -> list[int]:
        """Return the tokens of text alone. special: markers become special tokens."""


class Tokenizer:
    """Converts chats and prompts for one target. template: None if its model was not made for
    chats. The other arguments are fields of TokenizerFile."""

    def __init__(
        self,
        encoder: Encoder,
        template: ChatTemplate | Renderer | None,
        *,
        takes_parts: bool = False,
        hides_unused_tools: bool = False,
        named_tokens: Json = _NONE,
    ) -> None:
        self.named_tokens = named_tokens
        self._takes_parts = takes_parts
        self.hides_unused_tools = hides_unused_tools
        self.vocabulary = encoder.vocabulary
        self._encoder = encoder
        self._template = template
        self._markers = Markers(self.vocabulary.markers)

    @property
    def template(self) -> str:
        """Return the chat template's text; empty if there is none."""
        return self._template.text if self._template else ""

    @property
    def takes_tools(self) -> bool:
        """True if the chat template shows tools to the model."""
        return self._template is not None and self._template.takes_tools

    def chat(
        self,
        messages: Sequence[Json],
        *,
        tools: Sequence[Json] = (),
        options: Json = _NONE,
        max_bytes: int = MAX_BYTES,
    ) -> list[int]:
        """Return the chat's tokens, with the assistant's turn opened. See
        gateway.ports.Tokenizer."""
        if self._template is None:
            raise ValueError("the model has no chat template; use /v1/completions")
        shown = shaped(messages, self.template, takes_parts=self._takes_parts)
        arguments = {"messages": shown, "tools": tools, "options": options}
        sentinel = _unused(self.template + "".join(_texts(arguments)))
        if continues := options.get(CONTINUES) is True:
            arguments |= {"messages": _marked(shown, sentinel), "options": _left_open(options)}
        safe: Any = {name: self._break(value, sentinel) for name, value in arguments.items()}
        rendered = _rendered(self._template, safe, max_bytes)
        if continues:
            rendered = _cut(rendered, sentinel)
        if sentinel in rendered:
            tokens = list(self._tokens(rendered, sentinel))
        else:
            tokens = self._encoder.tokenize(rendered, True)
        return beginning(self._encoder.chat_beginning, tokens)

    def encode(self, text: str, *, special: bool = True, begin: bool = True) -> list[int]:
        """Return the tokens of a raw prompt. See gateway.ports.Tokenizer."""
        tokens = self._encoder.tokenize(text, special)
        return beginning(self._encoder.raw_beginning, tokens) if begin else tokens

    def infill(
        self,
        prefix: str,
        suffix: str,
        snippets: Sequence[Mapping[str, str]] = (),
        max_tokens: int = 0,
    ) -> list[int]:
        """Return a prompt for the text between two texts. See gateway.ports.Tokenizer."""
        if self._infill is None:
            raise ValueError("the model has no tokens for filling in between two texts")
        encode = partial(self._encoder.tokenize, special=False)
        prompt = self._infill.prompt(prefix, suffix, encode)
        before = self._infill.before(snippets, max_tokens - len(prompt), encode)
        return beginning(self._encoder.raw_beginning, [*before, *prompt])

    @cached_property
    def _infill(self) -> InfillFormat | None:
        return infill_format(self.vocabulary)

    def piece(self, token: int, special: bool = False) -> bytes:
        """Return a token's bytes, which may be part of a character. See Vocabulary.piece."""
        return self.vocabulary.piece(token, special)

    def _break(self, value: object, sentinel: str) -> object:
        """Return a JSON value with a sentinel inside each marker, so that it has no marker."""
        match value:
            case str():
                pieces = (
                    f"{piece[0]}{sentinel}{piece[1:]}" if is_marker else piece
                    for piece, is_marker in self._markers.split(value)
                )
                return "".join(pieces)
            case Mapping():
                break_ = partial(self._break, sentinel=sentinel)
                return {break_(k): break_(v) for k, v in value.items()}
            case list() | tuple():
                return [self._break(item, sentinel) for item in value]
        return value

    def _tokens(self, rendered: str, sentinel: str) -> Iterator[int]:
        for part, is_marker in self._markers.split(rendered):
            if is_marker:
                yield self.vocabulary.markers[part]
            elif text := part.replace(sentinel, ""):
                yield from self._encoder.tokenize(text, False)


def _marked(messages: Sequence[Json], sentinel: str) -> list[Json]:
    """Return the messages with a mark at the end of the last one's content. The space after the
    mark shows whether the template strips contents."""
    *others, last = messages
    mark = f"{sentinel}0 "
    content = last.get("content") or ""
    if isinstance(content, str):
        return [*others, {**last, "content": content + mark}]
    *parts, end = content if isinstance(content, list) else []
    return [*others, {**last, "content": [*parts, {**end, "text": end["text"] + mark}]}]


def _cut(rendered: str, sentinel: str) -> str:
    """Return a chat up to the mark, as `transformers` does; if the template strips contents,
    without the space before it. Raises ValueError if there is no mark."""
    mark = f"{sentinel}0"
    before, separator, after = rendered.rpartition(mark)
    if not separator:
        raise ValueError("the chat template does not show the last message")
    before = before.replace(mark, "")
    return before if after.startswith(" ") else before.rstrip()


def _left_open(options: Json) -> Json:
    others = {name: value for name, value in options.items() if name != CONTINUES}
    return {**others, "add_generation_prompt": False}


def _rendered(template: ChatTemplate | Renderer, chat: dict[str, Any], max_bytes: int) -> str:
    try:
        return template.render(**chat, max_bytes=max_bytes)
    except Overrun:
        raise
    except ValueError:  # the template may allow system messages only at the beginning
        merged = system_first(chat["messages"])
        if merged == chat["messages"]:
            raise
        return template.render(**{**chat, "messages": merged}, max_bytes=max_bytes)


def beginning(begin: tuple[int, ...], tokens: list[int]) -> list[int]:
    """Return tokens that begin with `begin`, which is added unless they do."""
    return tokens if tuple(tokens[: len(begin)]) == begin else [*begin, *tokens]


def _texts(value: object) -> Iterator[str]:
    """Yield every text and number of a JSON value, and its field names."""
    match value:
        case str():
            yield value
        case Mapping():
            for item in chain(value, value.values()):
                yield from _texts(item)
        case list() | tuple():
            for item in value:
                yield from _texts(item)
        case _:
            yield str(value)


def _unused(text: str) -> str:
    """Return a number that the text does not contain and no client can foresee. Templates may
    encode texts as JSON or in Python's notation, and digits are the same in both. The first
    digit is in it once, so that no digits beside it make it appear at another place."""
    while (number := "9" + "".join(secrets.choice("012345678") for _ in range(16))) in text:
        pass
    return number
