"""A draft model and a link that follow a script, for tests of what is between them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

import msgspec
from prometheus_client import CollectorRegistry

from edge_agent.draft.drafter import NoDrafter, StepSampler, drafts_while_matching
from edge_agent.draft.token_mapping import Translation
from edge_agent.driver import EdgeSession
from edge_agent.engine import EdgeEngine
from edge_agent.link.errors import LinkDown, VerifierResponse
from edge_agent.link.known_verifiers import KnownVerifier
from edge_agent.link.names import Name
from edge_agent.link.verifier import Verifier
from edge_agent.link.verifiers import Verifiers
from edge_agent.metrics import EdgeMetrics
from edge_agent.settings import EdgeSettings
from gateway.errors import ApiError, Unavailable
from gateway.ports import Delta, Job
from gateway.tracing import Span
from local_models.tokenizer import Tokenizer
from local_models.tokenizer_file import TokenizerFile
from local_models.vocabulary import Relation, Vocabulary
from speculation.draft_token import DraftToken
from speculation.messages import Commit, Down, Draft, Finish, Open, Opened, Pushed, Sampling
from speculation.model_facts import Limits, ModelFacts, TokenId

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


# An EdgeEngine over a scripted verifier.

FACTS = ModelFacts(
    "big", 1000, "print", 512, [7], LIMITS, judges=["coupled"], features=["logit_bias"]
)
JOB = Job("r1", (50, 51, 52), 20, Sampling(temperature=0.5, top_k=3), seed=9)


Script = Callable[[ScriptedLink], AsyncGenerator[Down]]


class FakeVerifiers:
    """Verifiers whose sessions have these links, the first one first; what the last one fails
    with is final. known: their facts."""

    reopened = 0

    def __init__(self, *links: ScriptedLink | Script, known: ModelFacts = FACTS) -> None:
        self.verifier = KnownVerifier("0", rtt_s=0.01)
        self.opened: list[Open] = []
        self.forgotten = 0
        self.known = known
        self.salts: list[str | None] = []
        self.links = [
            each if isinstance(each, ScriptedLink) else ScriptedLink(each) for each in links
        ]

    @property
    def link(self) -> ScriptedLink:
        """The last one."""
        return self.links[-1]

    async def facts(self, identity: str = "") -> ModelFacts:
        return self.known

    async def awake(self) -> None:
        """Be awake."""

    def answer(self, identity: str, span: Span, *prompt: object) -> FakeVerifiers:
        return self

    async def again(self, session: EdgeSession, error: ApiError) -> None:
        await asyncio.sleep(0)
        if len(self.opened) >= len(self.links):
            raise error

    def open(self, request: Open) -> EdgeSession:
        self.opened.append(request)
        return self.links[min(len(self.opened), len(self.links)) - 1]

    def forget(self) -> None:
        self.forgotten += 1

    async def forget_answers(self, salt: str | None) -> None:
        self.salts.append(salt)


class TokenizerVerifier:
    """A verifier that is away for so many requests, and has this tokenizer.

    packed: what it sends in place of the tokenizer's file.
    """

    def __init__(
        self, file: TokenizerFile, packed: bytes | None = None, *, away: int = 0
    ) -> None:
        self.sent = 0
        self.closed = False
        self._away = away
        self.serve(file, packed)

    def serve(self, file: TokenizerFile, packed: bytes | None = None) -> None:
        size = len(file.open().vocabulary.pieces)
        known = {"vocabulary": file.digest, "vocabulary_size": size}
        self._facts = msgspec.structs.replace(FACTS, **known)
        self._packed = file.pack() if packed is None else packed

    async def watch(self) -> None:
        """It is the only one."""

    async def facts(self) -> ModelFacts:
        self._away -= 1
        if self._away >= 0:
            raise Unavailable("no verifier yet")
        return self._facts

    async def tokenizer(self) -> bytes:
        self.sent += 1
        return self._packed

    async def close(self) -> None:
        self.closed = True


class ByteEncoder:
    """A byte is a token."""

    vocabulary = Vocabulary((b"",) * 256, frozenset(), frozenset())
    raw_beginning = chat_beginning = (255,)

    def tokenize(self, text: str, special: bool) -> list[int]:
        return [254] if special else list(text.encode())


@dataclass
class Paired:
    relation: Relation | None = "identical"
    translation: Translation | None = None
    draft_tokens: int = 1000

    async def __call__(self, vocabulary: str) -> Tokenizer:
        return Tokenizer(ByteEncoder(), None)


class OneSlot(NoDrafter):
    """A Drafter with one slot."""

    def __init__(self, slot: CountingSlot | None = None) -> None:
        self.slot = slot or CountingSlot()

    def take(
        self, prompt: Sequence[TokenId], owner: object = None, *, whole: bool = False
    ) -> CountingSlot:
        return self.slot


def engine(
    verifiers: FakeVerifiers,
    metrics: EdgeMetrics | None = None,
    drafter: OneSlot | NoDrafter | None = None,
    settings: EdgeSettings | None = None,
    paired: Paired | None = None,
    draft_tokens: int = 1000,
) -> EdgeEngine:
    return EdgeEngine(
        verifiers,
        drafter or OneSlot(),
        settings or EdgeSettings(),
        metrics or EdgeMetrics(CollectorRegistry()),
        paired or Paired(draft_tokens=draft_tokens),
    )


async def deltas(stream: AsyncGenerator[Delta]) -> list[Delta]:
    async with asyncio.timeout(2):
        return [delta async for delta in stream]


async def opened(
    job: Job = JOB,
    settings: EdgeSettings | None = None,
    drafter: OneSlot | NoDrafter | None = None,
    known: ModelFacts = FACTS,
) -> Open:
    """Return what an engine opens the session of a job with."""
    verifiers = FakeVerifiers(scripted(Finish("stop")), known=known)
    await deltas(engine(verifiers, drafter=drafter, settings=settings).generate(job))
    (request,) = verifiers.opened
    return request


# Verifiers without sessions, which say whether they are ready and what they serve.

URL = "http://verifiers:9000"
NAMED = msgspec.structs.replace(FACTS, identity="i")


@dataclass(eq=False)
class FakeVerifier:
    """An edge_agent.link.connection.Connection to it."""

    client: object = field(default_factory=object)
    url: str = "fake"
    up: bool = True
    facts: bytes = msgspec.json.encode(NAMED)

    def renew(self, silent: object) -> None:
        if silent in (None, self.client):
            self.client = object()

    async def ask(self, method: str, path: str, **_: object) -> VerifierResponse:
        await asyncio.sleep(0.05)
        if not self.up:
            raise LinkDown("not ready")
        return VerifierResponse(200, self.facts if path == "/v1/model-facts" else b"{}")


@dataclass
class Fleet:
    """The verifiers that a name leads to, and an edge that knows the name alone."""

    found: list[str] | OSError = field(default_factory=list)
    asked: int = 0
    behind: dict[str, FakeVerifier] = field(default_factory=dict)
    metrics: EdgeMetrics = field(default_factory=lambda: EdgeMetrics(CollectorRegistry()))

    def __post_init__(self) -> None:
        self.name = Name(URL, self.make, self.resolve)
        self.edge = Verifiers([], self.metrics, 30.0, [self.name])

    def make(self, name: Name, address: str) -> Verifier:
        fake = self.at(address)
        return Verifier(fake, self.metrics, lost=name.look)  # type: ignore[arg-type]

    def at(self, address: str) -> FakeVerifier:
        new = FakeVerifier(url=f"verifiers ({address})", up=bool(address))
        return self.behind.setdefault(address, new)

    async def resolve(self, host: str, port: int) -> Sequence[str]:
        assert (host, port) == ("verifiers", 9000)
        self.asked += 1
        if isinstance(self.found, OSError):
            raise self.found
        return self.found

    @property
    def used(self) -> list[str]:
        return sorted(v.url.removeprefix("verifiers").strip(" ()") for v in self.edge.all)
