"""A draft model and a link that do as they are told, for tests of what stands between them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence

from edge_agent.draft_model.drafter import drafts_while_matching as guessed_along
from speculation.protocol.messages import (
    Commit,
    Down,
    Draft,
    Finish,
    Limits,
    Opened,
    Pushed,
    TokenId,
)
from speculation.sampling.draft_sampler import DraftSampler
from speculation.sampling.draft_token import DraftToken

LIMITS = Limits(max_verify=4, max_ahead=16)


class CountingSeat:
    """Guesses n, n + 1, ...: the length of its context. `wait` is awaited in each step."""

    def __init__(
        self,
        *,
        context_tokens: int = 1000,
        confidence: float = 1.0,
        wait: Callable[[Sequence[TokenId]], Awaitable[object]] = lambda _: asyncio.sleep(0),
    ) -> None:
        self.context_tokens = context_tokens
        self.contexts: list[list[TokenId]] = []
        self.left = 0
        self._confidence = confidence
        self._wait = wait

    async def step(
        self,
        context: Sequence[TokenId],
        pick: DraftSampler,
        *,
        ahead: Sequence[TokenId] = (),
    ) -> list[DraftToken]:
        self.contexts.append([*context, *ahead])
        await self._wait(context)
        return guessed_along(lambda n: self.guess(len(context) + n), ahead)

    def guess(self, length: int) -> DraftToken:
        """Return what follows a context of that length."""
        return DraftToken(length, self._confidence)

    def leave(self) -> None:
        self.left += 1


class ScriptedLink:
    """Says what `script` yields; remembers what was sent."""

    def __init__(self, script: Callable[[ScriptedLink], AsyncGenerator[Down]]) -> None:
        self.sent: list[Pushed] = []
        self.cancelled = 0
        self.posting = False
        self._script = script
        self._news = asyncio.Event()

    def events(self) -> AsyncGenerator[Down]:
        return self._script(self)

    def send(self, message: Pushed) -> None:
        self.sent.append(message)
        self._news.set()

    async def post(self) -> None:
        self.posting = True
        try:
            await asyncio.Event().wait()
        finally:
            self.posting = False

    async def cancel(self) -> None:
        self.cancelled += 1

    @property
    def drafted(self) -> list[TokenId]:
        return [token for m in self.sent if isinstance(m, Draft) for token in m.tokens]

    async def until_sent(self, tokens: int) -> None:
        """Wait until that many draft tokens were sent, in all."""
        while len(self.drafted) < tokens:
            self._news.clear()
            await self._news.wait()

    async def until(self, message: Pushed) -> None:
        """Wait until that message was sent."""
        while message not in self.sent:
            self._news.clear()
            await self._news.wait()


Step = Down | Callable[[ScriptedLink], Awaitable[object]]
"""Of a script: what is said, or what is awaited before it goes on."""


def saying(*steps: Step) -> Callable[[ScriptedLink], AsyncGenerator[Down]]:
    """A script that opens the session and takes these steps, one a turn of the loop."""

    async def script(link: ScriptedLink) -> AsyncGenerator[Down]:
        yield Opened("s", LIMITS)
        for step in steps:
            await asyncio.sleep(0)
            if isinstance(step, Down):
                yield step
            else:
                await step(link)

    return script


def sent(tokens: int) -> Step:
    """Wait until that many draft tokens were sent, in all."""
    return lambda link: link.until_sent(tokens)


def on(event: asyncio.Event) -> Step:
    return lambda _: event.wait()


def let(event: asyncio.Event) -> Step:
    """Set the event, for whoever waits on it."""

    async def step(_: ScriptedLink) -> None:
        event.set()

    return step


async def quiet(_: ScriptedLink) -> None:
    """Let everybody do what they have to do."""
    for _turn in range(20):
        await asyncio.sleep(0)


def commits(tokens: Iterable[int], *, size: int = 1) -> list[Down]:
    """Commits of `size` tokens each, and a Finish."""
    left, said = list(tokens), []
    for start in range(0, len(left), size):
        said.append(Commit(0, start, tuple(left[start : start + size])))
    return [*said, Finish("length")]
