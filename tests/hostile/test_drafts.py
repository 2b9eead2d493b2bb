"""A session's opening and its drafts cost the key that sends them, and nobody else."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from itertools import count, pairwise, repeat
from pathlib import Path
from random import Random
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agent import proposals
from edge_agent.link.posts import Posts
from edge_agent.proposals import ProposalFinder
from edge_agent.settings import EdgeSettings
from gateway.errors import InvalidRequest
from gateway.hosting import limits
from gateway.ports import Job
from gateway.ports import opening as lookup_opening
from speculation import wire
from speculation.draft_machine import Outcome
from speculation.errors import RemoteProtocolError
from speculation.messages import RUN_CHARACTERS, Draft, Pushed, Redraw, Sampling
from speculation.model_facts import TokenId
from speculation.ngrams import PromptGrams
from speculation.wire import Framed
from tests.edge_agent.fakes import FACTS as LOOKUP_FACTS
from tests.edge_agent.fakes import Paired
from tests.guards import GUARD_S
from tests.speculation.joined import Joined
from tests.speculation.small_models import model
from tests.speculation.small_models import opening as small_opening
from tests.verifier.fake_app import ANN, BEN, OPEN, UploadStream, app_of, client_of, write_keys
from tests.verifier.fake_sessions import ending, running, tenant
from tests.verifier.fake_target import FACTS, STALLS, FakeTarget, opening
from tests.virtual_time import compute
from verifier.open_checks import check_open
from verifier.routes import DRAFTS_BYTES
from verifier.sessions.admission import MIN_UPLOADS
from verifier.sessions.session import INITIAL_CHAINS

ALLOWED = INITIAL_CHAINS * FACTS.limits.max_ahead
"""Draft tokens of a session that has been sent nothing."""

FLOODS: dict[str, tuple[str, Iterator[Pushed]]] = {
    "repeated": ("coupled", repeat(Draft(0, 0, 0, (5,)))),
    "new epochs": ("coupled", (Draft(epoch, 0, 0, (5,)) for epoch in count())),
    "long": ("coupled", repeat(Draft(0, 0, 0, (5,) * 8))),
    "redraws": ("separate", (Redraw(0, 0, draw) for draw in count())),
}


@pytest.mark.parametrize("flood", FLOODS)
async def test_a_session_ends_when_it_sends_more_than_a_correct_edge(flood: str) -> None:
    judge, messages = FLOODS[flood]
    async with running() as (sessions, target, _):
        session = await sessions.open(
            opening(judge=judge, fill="never", prompt=(STALLS,)), tenant()
        )
        with pytest.raises(RemoteProtocolError, match="more in all"):
            await session.push(map(Framed, messages))

        tokens = [len(getattr(pushed.message, "tokens", "1")) for pushed in target.pushed]
        assert sum(tokens) == ALLOWED
        assert (await ending(session)).code == "protocol_error"


@given(
    number=st.integers(0, 2**32),
    right=st.sampled_from([0.0, 0.5, 0.95, 1.0]),
    judge=st.sampled_from(["coupled", "separate"]),
    fill=st.sampled_from(["always", "auto", "never"]),
    disorder=st.integers(0, 300),
)
@settings(max_examples=200, deadline=None)
def test_a_correct_edge_never_sends_half_as_much(
    number: int, right: float, judge: str, fill: str, disorder: int
) -> None:
    request = small_opening(judge=judge, max_tokens=40, fill=fill)
    joined = Joined(
        request, model(number), model(number + 3), Random(number), right,
        looks_up=judge == "coupled",
    )  # fmt: skip
    joined.cut = lambda: None  # type: ignore[method-assign]  # else what was sent is repeated
    execute, sent = joined.edge._execute, 0

    def counting(outcome: Outcome) -> None:
        nonlocal sent
        sent += sum(len(getattr(message, "tokens", "1")) for message in outcome.send)
        replies = max(1, joined.received)  # with Opened, for the first chain
        assert sent <= joined.limits.max_ahead * replies
        execute(outcome)

    joined.edge._execute = counting  # type: ignore[method-assign]
    joined.run(disorder)
    assert joined.edge.finish


async def test_others_go_on_while_a_session_hands_messages_up() -> None:
    class Slow(FakeTarget):
        async def push(self, session: str, message: Framed[Pushed]) -> None:
            compute(0.0005)  # it takes the loop, as a pass's machine does
            self.pushed.append(message)

    async def tick() -> None:
        while True:
            ticks.append(len(target.pushed))
            await asyncio.sleep(0)

    ticks: list[int] = []
    async with running(Slow()) as (sessions, target, _):
        session = await sessions.open(opening(fill="never", prompt=(STALLS,)), tenant())
        other = asyncio.create_task(tick())
        bodies = [[Framed(Draft(0, 0, 0, (5,)))] * 20 for _ in range(5)]
        await asyncio.gather(*map(session.push, bodies))
        other.cancel()

        assert max(after - before for before, after in pairwise(ticks)) <= 3


async def test_what_waited_long_goes_in_requests_that_the_verifier_takes() -> None:
    """The way up was cut, and the way down was not: so all of it is of one epoch."""
    arrived, bodies = asyncio.Event(), list[bytes]()

    class WithoutUploads:
        """A Verifier whose upload streams hold requests back."""

        uploads = SimpleNamespace(of=lambda *_: None)

        async def post(self, _: str, body: bytes, __: object) -> None:
            bodies.append(body)
            if sum(map(len, bodies)) == waiting:
                arrived.set()

    sending = Posts(WithoutUploads(), {})  # type: ignore[arg-type]
    drafts = [Draft(0, i, i, (200_000,), (65536,)) for i in range(6000)]
    waiting = sum(len(wire.encode(draft)) for draft in drafts)
    for draft in drafts:
        sending.send(draft)
    running = asyncio.create_task(sending.run("s"))
    async with asyncio.timeout(GUARD_S):
        await arrived.wait()
    running.cancel()

    assert max(map(len, bodies)) <= DRAFTS_BYTES < waiting


LARGE = opening(prompt=(1,) * 300_000)
MANY = 24


async def test_an_open_is_decoded_in_turn_however_many_another_tenant_sends(
    tmp_path: Path,
) -> None:
    file, body = write_keys(tmp_path, "ann", "ben"), wire.encode(LARGE)
    async with (
        app_of(file, FakeTarget()) as app,
        client_of(app, ANN) as ann,
        client_of(app, BEN) as ben,
    ):
        many = [
            asyncio.create_task(ann.post("/v1/speculate", content=body)) for _ in range(MANY)
        ]
        await asyncio.wait(many, return_when=asyncio.FIRST_COMPLETED)
        answer = await ben.post("/v1/speculate", content=OPEN)
        waiting = sum(not task.done() for task in many)
        refused = await asyncio.gather(*many)

    assert answer.status_code == 200
    assert waiting > MANY // 2
    assert {each.status_code for each in refused} == {400}


def test_the_length_of_a_prompt_is_checked_before_its_tokens_are() -> None:
    with pytest.raises(InvalidRequest, match="the context has"):
        check_open(opening(prompt=(FACTS.vocabulary_size,) * 300_000), FACTS)


CONNECTIONS = 24


@asynccontextmanager
async def uploading(file: Path, streams: int) -> AsyncIterator[tuple[int, int]]:
    """Open upload streams of ann's at a verifier; yield how many run, and the status of a
    request of ben's."""
    async with app_of(file, FakeTarget()) as app:
        opened = [UploadStream(app) for _ in range(streams)]
        async with asyncio.timeout(GUARD_S), client_of(app, BEN) as ben:
            while not all(upload.answer for upload in opened):  # noqa: ASYNC110 - other tasks
                await asyncio.sleep(0.001)
            status = (await ben.get("/v1/model-facts")).status_code
        running = [u for u in opened if len(u.answer) == RUN_CHARACTERS]
        yield len(running), status
        for upload in opened:
            upload.leave()
        await asyncio.gather(*(upload.ended() for upload in opened))


async def test_upload_streams_are_a_few_and_count_as_requests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "MAX_CONNECTIONS", CONNECTIONS)
    for more, most in (
        ("", CONNECTIONS * 3 // 4),
        ("sessions = 1", MIN_UPLOADS),
        ("sessions = 9", 9),
        ("requests_a_minute = 3", 3),
    ):
        file = write_keys(tmp_path, "ann", "ben", more=more)
        async with uploading(file, CONNECTIONS) as (running, status):
            assert (running, status) == (most, 200), more


# A long prompt does not hold up other answers while it is searched for what may come next.

PROMPT = tuple(number % 97 for number in range(5000))


async def test_the_n_grams_of_a_long_prompt_are_made_once_and_in_a_thread(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[int] = []
    making, let_go = threading.Event(), threading.Event()

    def make(prompt: tuple[TokenId, ...]) -> PromptGrams:
        made.append(threading.get_ident())
        making.set()
        let_go.wait(60.0)
        return PromptGrams(prompt)

    monkeypatch.setattr(proposals, "PromptGrams", make)
    finder = ProposalFinder(EdgeSettings(), Paired())
    jobs = [Job(f"r-{seed}", PROMPT, 8, Sampling(), seed) for seed in range(8)]
    finding = [
        asyncio.create_task(finder.find(lookup_opening(j, LOOKUP_FACTS), j, LOOKUP_FACTS))
        for j in jobs
    ]
    await asyncio.to_thread(making.wait, 30.0)
    finding.pop().cancel()
    let_go.set()
    found = await asyncio.gather(*finding)

    assert len(made) == 1
    assert threading.get_ident() not in made
    for each in found:
        assert each.proposer is not None
        each.proposer.follow((), ())
    assert not finder._grams._making
