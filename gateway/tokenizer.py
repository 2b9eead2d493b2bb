"""What the OpenAI API needs of a target's tokenizer."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Final, Protocol

Json = Mapping[str, object]
"""A JSON object, as a chat template gets it."""

NONE: Final[Json] = MappingProxyType({})

MAX_CHAT_BYTES: Final = 32 << 20
"""A chat as a text has at most so many bytes, where nobody gives a smaller limit."""


class Tokenizer(Protocol):
    @property
    def template(self) -> str:
        """The chat template's text; empty if there is none."""

    @property
    def takes_tools(self) -> bool:
        """Whether the chat template shows tools to the model."""

    @property
    def hides_unused_tools(self) -> bool:
        """Whether the target's server keeps tools that must not be called from the template."""

    def chat(
        self,
        messages: Sequence[Json],
        *,
        tools: Sequence[Json] = (),
        options: Json = NONE,
        most_bytes: int = MAX_CHAT_BYTES,
    ) -> list[int]:
        """Return the chat's tokens, with the assistant's turn opened, or raise ValueError.

        Raises OverflowError where the chat as a text has more than `most_bytes`, and OSError
        where it cannot be made a text now.

        messages: objects with `role`, `content` (a text, or parts of the type "text", which a
        template gets joined unless it reads parts), and where there are any `tool_calls`,
        `reasoning` and `reasoning_content`, `tool_call_id`, `name`. A tool call's `arguments`
        are an object. tools: OpenAI's tool objects. options: more variables for the template;
        where `continue_final_message` is one, the chat ends with the last message's content.
        """

    def encode(self, text: str, *, special: bool = True, begin: bool = True) -> list[int]:
        """Return the tokens of a raw prompt.

        special: markers in it become special tokens. begin: the tokens that begin every prompt
        of this model come first.
        """

    def infill(
        self,
        prefix: str,
        suffix: str,
        snippets: Sequence[Mapping[str, str]] = (),
        most_tokens: int = 0,
    ) -> list[int]:
        """Return the tokens of a prompt for the text between two; markers in them stay text.

        snippets: objects with `filename` and `text`, of other files, which the model is shown
        before: as many of the last ones as keep the prompt within most_tokens.

        Raises ValueError if the model has no tokens for that.
        """

    def piece(self, token: int, special: bool = False) -> bytes:
        """Return a token's UTF-8 bytes, perhaps part of a character.

        special: a special token has its spelling; otherwise it has b"".
        """


TokenizerSource = Callable[[str], Awaitable[Tokenizer]]
"""A function that returns the target's tokenizer, which must have the digest Facts.vocabulary,
unless that is empty; it raises gateway.errors.Unavailable while there is none. `chat` and
`encode` are called in worker threads while `piece` is called in the event loop's."""
