"""A draft model and a link that follow a script, for tests of what is between them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
from contextlib import aclosing

from picospec.edge_agent.draft.drafter import StepSampler, drafts_while_matching
from picospec.gateway.errors import ApiError
from picospec.speculation.distributions import DraftToken
from picospec.speculation.messages import (
    Commit,
    Down,
    Draft,
    Finish,
    Limits,
    Open,
    Opened,
    Pushed,
    TokenId,
)

LIMITS = Limits(max_verify=4, max_ahead=16)
OPENED = Opened("s", LIMITS)


class CountingSlot:
    """Drafts n, n + 1, ..., where n is the length of the context. Each step awaits `wait`."""

    def __init__(
        self,
        *,
        confidence: float = 1.0,
        wait: Callable[[Sequence[TokenId]], Awaitable[object]] = lambda _: asyncio.sleep(0),
    ) -> None:
        self.contexts: list[list[TokenId]] = []
        self.sampler: StepSampler | None = None  # of the last step
        self.left = 0
        self._confidence = confidence
        self._wait = wait

    async def step(
        self,
        context: Sequence[TokenId],
        sampler: StepSampler,
        *,
        ahead: Sequence[TokenId] = (),
    ) -> list[DraftToken]:
        self.contexts.append([*context, *ahead])
        self.sampler = sampler
        await self._wait(context)
        return drafts_while_matching(lambda n: self.draft(len(context) + n), ahead)

    def draft(self, length: int) -> DraftToken:
        """Return what follows a context of that length."""
        return DraftToken(length, self._confidence)

    def leave(self) -> None:
        self.left += 1


class ScriptedLink:
    """Yields what `script` yields; remembers what was sent."""

    def __init__(self, script: Callable[[ScriptedLink], AsyncGenerator[Down]]) -> None:
        self.sent: list[Pushed] = []
        self.closed = 0
        self.posting = False
        self._script = script
        self._changed = asyncio.Event()

    async def events(self) -> AsyncGenerator[Down]:
        try:
            async with aclosing(self._script(self)) as messages:
                async for message in messages:
                    yield message
        finally:
            self.closed += 1

    def send(self, message: Pushed) -> None:
        self.sent.append(message)
        self._changed.set()

    async def post(self) -> None:
        self.posting = True
        try:
            await asyncio.Event().wait()
        finally:
            self.posting = False

    @property
    def drafted(self) -> list[TokenId]:
        return [token for m in self.sent if isinstance(m, Draft) for token in m.tokens]

    async def until_sent(self, tokens: int) -> None:
        """Wait until that many draft tokens were sent, in all."""
        while len(self.drafted) < tokens:
            self._changed.clear()
            await self._changed.wait()


class ScriptedSessions:
    """Opens one session for each link; what the last one fails with is final."""

    rtt_s = 0.0

    def __init__(self, *links: ScriptedLink) -> None:
        self.opened: list[Open] = []
        self._links = links

    def open(self, request: Open) -> ScriptedLink:
        self.opened.append(request)
        return self._links[len(self.opened) - 1]

    async def again(self, error: ApiError) -> None:
        await asyncio.sleep(0)
        if len(self.opened) == len(self._links):
            raise error


Step = Down | Callable[[ScriptedLink], Awaitable[object]]
"""Of a script: a message, or what is awaited before it goes on."""


def unopened(*steps: Step) -> Callable[[ScriptedLink], AsyncGenerator[Down]]:
    """Return a script that takes these steps, one a turn of the loop."""

    async def script(link: ScriptedLink) -> AsyncGenerator[Down]:
        for step in steps:
            if isinstance(step, Down):
                yield step
            else:
                await step(link)
            await asyncio.sleep(0)

    return script


def scripted(*steps: Step) -> Callable[[ScriptedLink], AsyncGenerator[Down]]:
    """Return a script that opens the session before it takes these steps."""
    return unopened(OPENED, *steps)


def sent(tokens: int) -> Step:
    """Wait until that many draft tokens were sent, in all."""
    return lambda link: link.until_sent(tokens)


def on(event: asyncio.Event) -> Step:
    return lambda _: event.wait()


def let(event: asyncio.Event) -> Step:
    """Set the event, for all that wait on it."""

    async def step(_: ScriptedLink) -> None:
        event.set()

    return step


async def quiet(_: ScriptedLink) -> None:
    """Let all tasks do what they have to do."""
    for _turn in range(20):
        await asyncio.sleep(0)


def commits(tokens: Iterable[int], *, size: int = 1) -> list[Down]:
    """Return Commits of `size` tokens each, and a Finish."""
    left, messages = list(tokens), list[Down]()
    for start in range(0, len(left), size):
        messages.append(Commit(0, start, tuple(left[start : start + size])))
    return [*messages, Finish("length")]
