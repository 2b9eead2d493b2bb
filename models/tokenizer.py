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
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NoReturn, Protocol

import jinja2
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from models.vocabulary import Vocabulary

Clock = Callable[[], datetime.datetime]


class Turn(Protocol):
    @property
    def role(self) -> str: ...
    @property
    def content(self) -> str: ...


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

    def chat(self, messages: Sequence[Turn]) -> list[int]:
        """Return the chat's tokens, with the assistant's turn opened, or raise ValueError."""
        turns = [{"role": turn.role, "content": turn.content} for turn in messages]
        sentinel = _unused("".join(text for turn in turns for text in turn.values()))
        safe = [{k: self._break(v, sentinel) for k, v in turn.items()} for turn in turns]
        try:
            rendered = self._template.render(
                messages=safe,
                add_generation_prompt=True,
                bos_token=self._text_of(self._model.bos),
                eos_token=self._text_of(self._vocabulary.eos),
            )
        except (jinja2.TemplateError, TypeError, ArithmeticError, LookupError) as error:
            raise ValueError(f"the chat template refuses: {error}") from error
        return self._with_bos(list(self._tokens(rendered, sentinel)))

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a plain text prompt, in which markers stay text."""
        return self._with_bos(self._model.tokenize(text, False))

    def piece(self, token: int) -> bytes:
        """Return a token's UTF-8 bytes, perhaps part of a character; b"" if it is special."""
        return self._vocabulary.piece(token)

    def _break(self, text: str, sentinel: str) -> str:
        return self._markers.sub(lambda found: found[0][0] + sentinel + found[0][1:], text)

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


def _unused(text: str) -> str:
    """Return a private-use character that the text does not contain."""
    used = set(text)
    return next(chr(code) for code in range(0xE000, 0xF8FF) if chr(code) not in used)
