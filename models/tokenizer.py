"""Converts chat messages to tokens by the model's chat template.

* The Jinja template runs in a sandbox, because it comes from outside: from the target.
* Only the template makes special tokens. A marker such as <|im_end|> in a message stays text:
  a sentinel character is put into it before rendering and removed from the result.
* The text between two markers is tokenised at once, as it is when the whole string is
  tokenised, so that the tokens are the same.
"""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Final, NoReturn, Protocol

import jinja2
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from models.vocabulary import Vocabulary

Clock = Callable[[], datetime.datetime]
_NONE: Final[Mapping[str, object]] = MappingProxyType({})


Json = Mapping[str, object]


class Source(Protocol):
    """What the tokenizer needs of a Model."""

    @property
    def vocabulary(self) -> Vocabulary: ...
    @property
    def bos(self) -> int | None: ...
    def tokenize(self, text: str, special: bool) -> list[int]: ...
    def metadata(self) -> dict[str, str]: ...


class GgufTokenizer:
    """Tokenises text and chats; `template` is in Jinja and replaces the model's own.

    Raises ValueError if there is none, or if it cannot be parsed.
    """

    def __init__(
        self, model: Source, template: str | None = None, *, now: Clock = datetime.datetime.now
    ) -> None:
        text = template or model.metadata().get("tokenizer.chat_template")
        if text is None:
            raise ValueError("the model has no chat template")
        self._model = model
        self._vocabulary = model.vocabulary
        self._template = _compile(text, now)
        self._markers = _any_of(self._vocabulary.markers)

    def chat(
        self, messages: Sequence[Json], *, tools: Sequence[Json] = (), options: Json = _NONE
    ) -> list[int]:
        """Return the chat's tokens, with the assistant's turn opened, or raise ValueError.

        See gateway.ports.Tokenizer.
        """
        given = {**options, "messages": messages, "tools": list(tools) or None}
        sentinel = _unused("".join(_texts(given)))
        safe = {name: self._break(value, sentinel) for name, value in given.items()}
        try:
            rendered = self._template.render(
                safe,
                add_generation_prompt=True,
                bos_token=self._text_of(self._model.bos),
                eos_token=self._text_of(self._vocabulary.eos),
            )
        except (jinja2.TemplateError, TypeError, ArithmeticError, LookupError) as error:
            raise ValueError(f"the chat template refuses: {error}") from error
        return self._with_bos(list(self._tokens(rendered, sentinel)))

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Return the tokens of a raw prompt. special: markers in it become special tokens."""
        return self._with_bos(self._model.tokenize(text, special))

    def piece(self, token: int) -> bytes:
        """Return a token's UTF-8 bytes, perhaps part of a character; b"" if it is special."""
        return self._vocabulary.piece(token)

    def _break(self, value: object, sentinel: str) -> object:
        """Return a JSON value whose texts hold no marker: a sentinel is in each."""
        match value:
            case str():
                return self._markers.sub(lambda at: at[0][0] + sentinel + at[0][1:], value)
            case Mapping():
                return {k: self._break(v, sentinel) for k, v in value.items()}
            case list() | tuple():
                return [self._break(item, sentinel) for item in value]
        return value

    def _tokens(self, rendered: str, sentinel: str) -> Iterator[int]:
        for part in self._markers.split(rendered):
            if part in self._vocabulary.markers:
                yield self._vocabulary.markers[part]
            elif text := part.replace(sentinel, ""):
                yield from self._model.tokenize(text, False)

    def _text_of(self, token: int | None) -> str:
        return "" if token is None else self._vocabulary.piece(token, True).decode()

    def _with_bos(self, tokens: list[int]) -> list[int]:
        bos = self._model.bos
        return tokens if bos is None or tokens[:1] == [bos] else [bos, *tokens]


def _compile(template: str, now: Clock) -> jinja2.Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
    )
    # Jinja's own tojson escapes HTML, as chat templates do not expect.
    environment.filters["tojson"] = lambda value, indent=None: json.dumps(
        value, ensure_ascii=False, indent=indent
    )
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda layout: now().strftime(layout)
    try:
        return environment.from_string(template)
    except jinja2.TemplateError as error:
        raise ValueError(f"the chat template cannot be read: {error}") from error


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _any_of(texts: Iterable[str]) -> re.Pattern[str]:
    """Return a pattern whose group is the longest of the texts, as llama.cpp matches them."""
    longest_first = sorted(texts, key=lambda text: (-len(text), text))
    return re.compile(f"({'|'.join(map(re.escape, longest_first)) or '(?!)'})")


def _texts(value: object) -> Iterator[str]:
    """Yield every text of a JSON value except the names of fields."""
    match value:
        case str():
            yield value
        case Mapping():
            for item in value.values():
                yield from _texts(item)
        case list() | tuple():
            for item in value:
                yield from _texts(item)


def _unused(text: str) -> str:
    """Return a private-use character that the text does not contain."""
    used = set(text)
    return next(chr(code) for code in range(0xE000, 0xF8FF) if chr(code) not in used)
