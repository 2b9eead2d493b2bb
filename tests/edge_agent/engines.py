"""An EdgeEngine over a scripted verifier."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass

import msgspec
from prometheus_client import CollectorRegistry

from picospec.edge_agent.draft.drafter import NoDrafter
from picospec.edge_agent.draft.retokeniser import Translation
from picospec.edge_agent.driver import Link
from picospec.edge_agent.engine import EdgeEngine
from picospec.edge_agent.metrics import EdgeMetrics
from picospec.edge_agent.settings import EdgeSettings
from picospec.gateway.errors import ApiError, Unavailable
from picospec.gateway.ports import Delta, Job, Sampling
from picospec.gateway.tracing import Span
from picospec.models.tokenizer import Tokenizer
from picospec.models.tokenizer_file import TokenizerFile
from picospec.models.vocabulary import Relation, Vocabulary
from picospec.speculation.drafting import DraftPolicy
from picospec.speculation.messages import Down, Finish, ModelFacts, Open, TokenId
from tests.edge_agent.fakes import LIMITS, CountingSlot, ScriptedLink, scripted

FACTS = ModelFacts(
    "big", 1000, "print", 512, [7], LIMITS, judges=["coupled"], features=["logit_bias"]
)
JOB = Job("r1", (50, 51, 52), 20, Sampling(temperature=0.5, top_k=3), seed=9)


class FakeUplink:
    """Verifiers of one session, whose link follows a script."""

    rtt_s = 0.01
    verifier = reopened = 0

    def __init__(
        self, script: Callable[[ScriptedLink], AsyncGenerator[Down]], known: ModelFacts = FACTS
    ) -> None:
        self.opened: list[Open] = []
        self.forgotten = 0
        self.known = known
        self.salts: list[str | None] = []
        self.link = ScriptedLink(script)

    async def facts(self) -> ModelFacts:
        return self.known

    def answer(self, span: Span) -> FakeUplink:
        return self

    async def again(self, error: ApiError) -> None:
        raise error

    def open(self, request: Open) -> Link:
        self.opened.append(request)
        return self.link

    def forget(self) -> None:
        self.forgotten += 1

    async def forget_answers(self, salt: str | None) -> None:
        self.salts.append(salt)


class TokenizerUplink:
    """An uplink to a verifier that is away for so many requests, and has this tokenizer.

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

    async def __call__(self, vocabulary: str) -> Tokenizer:
        return Tokenizer(ByteEncoder(), None)


class OneSlot:
    """A Drafter with one slot."""

    def __init__(self) -> None:
        self.slot = CountingSlot()

    def take(
        self, prompt: Sequence[TokenId], owner: object = None, *, whole: bool = False
    ) -> CountingSlot:
        return self.slot

    is_stuck = False
    read_tokens = 0

    async def watch(self) -> None:
        pass

    def close(self) -> bool:
        return True


def engine(
    uplink: FakeUplink,
    metrics: EdgeMetrics | None = None,
    drafter: OneSlot | NoDrafter | None = None,
    settings: EdgeSettings | None = None,
    paired: Paired | None = None,
    draft_tokens: int = 1000,
    policy: DraftPolicy | None = None,
) -> EdgeEngine:
    return EdgeEngine(
        uplink,
        drafter or OneSlot(),
        settings or EdgeSettings(),
        metrics or EdgeMetrics(CollectorRegistry()),
        paired or Paired(),
        Vocabulary((b"",) * draft_tokens, frozenset(), frozenset()),
        policy,
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
    uplink = FakeUplink(scripted(Finish("stop")), known)
    await deltas(engine(uplink, drafter=drafter, settings=settings).generate(job))
    (request,) = uplink.opened
    return request
