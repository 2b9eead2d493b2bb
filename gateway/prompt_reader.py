"""Reads prompts within bounds, in a few threads that tenants share fairly.

Tokenising takes up to 3 s for each megabyte, so a text that cannot fit into the context is
refused by its number of bytes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate, chain
from typing import Final

from gateway.errors import InvalidRequest, Overloaded, PromptTooLong, Unavailable
from gateway.ports import MAX_CHAT_BYTES, NONE, Facts, GatewayTokenizer, Json
from gateway.turns import T, ThreadTurns

MAX_RUNNING: Final = 3
"""This many prompts are read at once; one tenant's long prompts take two places at most."""

MAX_WAITING: Final = 256
"""At most this many prompts of one tenant wait to be read; the next gets a 429. Most take some
milliseconds."""

READ_TIMEOUT_S: Final = 60.0
"""A prompt that is not read within this many seconds gets a 429. 8 MB take half of the time."""

BYTES_PER_TOKEN: Final = 16
"""A text with more bytes than this for each token of the context does not fit into the context
in practice: most texts have 3 to 5 bytes a token. A body may have twice as many, because it is
JSON."""

CHARGED_BYTES_PER_TOKEN: Final = 4
"""A text that nobody counts the tokens of is charged as a token for this many bytes: it was
refused before it was tokenised, or another service answered it."""

SNIPPETS_SHARE: Final = 0.75
"""Snippets of other files may fill a prompt up to this fraction of the context."""


class PromptReader:
    """Runs templates and tokenisation in threads: a long prompt would stall every stream."""

    def __init__(self) -> None:
        self._turns = ThreadTurns(MAX_RUNNING, MAX_WAITING, "prompts wait to be read")

    async def read(self, owner: object, work: Callable[[], T]) -> T:
        """Return what `work` returns in a thread. owner: the tenant whose turn it is.

        Raises Overloaded, or what `work` raises.
        """
        try:
            async with asyncio.timeout(READ_TIMEOUT_S) as deadline:
                return await self._turns.run(owner, work)
        except TimeoutError as error:
            if not deadline.expired():
                raise
            message = f"the prompt was not read within {READ_TIMEOUT_S:g} s; try again later"
            raise Overloaded(message) from error


class BoundedTokenizer:
    """Wraps a tokenizer and refuses texts that cannot fit into the context. field: name of the
    prompt's field, for errors."""

    def __init__(self, tokenizer: GatewayTokenizer, facts: Facts, field: str) -> None:
        self.tokenizer = tokenizer
        self.template = tokenizer.template
        self.named_tokens = tokenizer.named_tokens
        self.takes_tools = tokenizer.takes_tools
        self.hides_unused_tools = tokenizer.hides_unused_tools
        self.piece = tokenizer.piece
        self.facts = facts
        self.field = field
        self.charged = 0
        """A refused prompt is charged as this many tokens: those that were made, and an
        estimate of the others."""

    def chat(
        self,
        messages: Sequence[Json],
        *,
        tools: Sequence[Json] = (),
        options: Json = NONE,
        max_bytes: int = MAX_CHAT_BYTES,
    ) -> list[int]:
        most = min(self._max_bytes, max_bytes)
        self._check(*chain.from_iterable(map(_texts, messages)))
        try:
            tokens = self.tokenizer.chat(messages, tools=tools, options=options, max_bytes=most)
        except OverflowError as error:
            raise self._too_long(most) from error
        except OSError as error:  # no process for the template: descriptors or memory ran out
            raise Unavailable(f"the chat template cannot be run now: {error}") from error
        return self._counted(tokens)

    def encode(self, text: str, *, special: bool = True, begin: bool = True) -> list[int]:
        self._check(text)
        try:
            return self._counted(self.tokenizer.encode(text, special=special, begin=begin))
        except ValueError as error:
            raise InvalidRequest.of(self.field, error) from error

    def infill(
        self,
        prefix: str,
        suffix: str,
        snippets: Sequence[Mapping[str, str]] = (),
        max_tokens: int = 0,
    ) -> list[int]:
        """See Tokenizer.infill. Snippets leave a part of the context for the answer."""
        self._check(prefix, suffix)
        sizes = accumulate(sum(map(len, each.values())) for each in reversed(snippets))
        fitting = sum(size <= self._max_bytes for size in sizes)
        last = snippets[len(snippets) - fitting :]
        most = max_tokens or int(self.facts.context_tokens * SNIPPETS_SHARE)
        return self._counted(self.tokenizer.infill(prefix, suffix, last, most))

    @property
    def _max_bytes(self) -> int:
        return self.facts.context_tokens * BYTES_PER_TOKEN

    def _check(self, *texts: str) -> None:
        size = sum(len(text.encode()) for text in texts)
        if size > self._max_bytes:
            raise self._too_long(size)

    def _too_long(self, size: int) -> PromptTooLong:
        context = self.facts.context_tokens
        estimate = size // CHARGED_BYTES_PER_TOKEN
        self.charged += min(estimate, context)
        return PromptTooLong(
            f"the context has {context} tokens; the prompt has more than {self._max_bytes}"
            " bytes, which cannot fit",
            param=self.field,
            tokens=estimate,
            context_tokens=context,
        )

    def _counted(self, tokens: list[int]) -> list[int]:
        self.charged += len(tokens)
        return tokens


def _texts(message: Json) -> Iterator[str]:
    match message.get("content"):
        case str(text):
            yield text
        case list(parts):
            yield from (part["text"] for part in parts)
