"""Declares the tokenizer of a target, as far as the OpenAI API needs it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Final, Protocol

Json = Mapping[str, object]
"""A chat template gets JSON objects of this type."""

NONE: Final[Json] = MappingProxyType({})

MAX_CHAT_BYTES: Final = 32 << 20
"""A chat rendered as text has at most this many bytes, unless a caller sets a smaller limit."""


class Tokenizer(Protocol):
    @property
    def template(self) -> str:
        """Return the text of the chat template; empty if there is none."""

    @property
    def takes_tools(self) -> bool:
        """True if the chat template shows tools to the model."""

    @property
    def hides_unused_tools(self) -> bool:
        """True if the target's server hides tools that must not be called from the template."""

    def chat(
        self,
        messages: Sequence[Json],
        *,
        tools: Sequence[Json] = (),
        options: Json = NONE,
        max_bytes: int = MAX_CHAT_BYTES,
    ) -> list[int]:
        """Return the tokens of a chat, with the assistant's turn opened. Raises ValueError.

        Raises OverflowError if the rendered text has more than `max_bytes`, and OSError if the
        chat cannot be rendered now.

        messages: objects with `role`, `content` (a text, or parts of the type "text", which are
        joined unless the template reads parts), and optionally `tool_calls`, `reasoning` and
        `reasoning_content`, `tool_call_id`, `name`. A tool call's `arguments` are an object.
        tools: OpenAI's tool objects. options: more variables for the template; with
        `continue_final_message`, the chat ends with the last message's content.
        """

    def encode(self, text: str, *, special: bool = True, begin: bool = True) -> list[int]:
        """Return the tokens of a raw prompt.

        special: markers in the text become special tokens. begin: the tokens that begin every
        prompt of this model are added.
        """

    def infill(
        self,
        prefix: str,
        suffix: str,
        snippets: Sequence[Mapping[str, str]] = (),
        max_tokens: int = 0,
    ) -> list[int]:
        """Return the tokens of a prompt for the text between `prefix` and `suffix`.

        Markers in the texts stay text. snippets: objects with `filename` and `text`, of other
        files; the prompt begins with as many of the last ones as fit into max_tokens.

        Raises ValueError if the model has no tokens for infilling.
        """

    def piece(self, token: int, special: bool = False) -> bytes:
        """Return a token's UTF-8 bytes, which may be a part of a character.

        special: a special token yields its spelling; without `special` it yields b"".
        """


TokenizerSource = Callable[[str], Awaitable[Tokenizer]]
"""Returns the target's tokenizer, which must have the given digest (Facts.vocabulary) unless
that is empty. Raises gateway.errors.Unavailable while there is none. `chat` and `encode` are
called in worker threads while `piece` is called in the event loop's thread."""
