"""What one tenant asks neither holds up another one nor shows to it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import closing
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest
from msgspec import structs
from prometheus_client import CollectorRegistry

from edge_agent.draft.llama import LlamaDrafter
from edge_agent.draft_grammars import EdgeGrammars
from edge_agent.metrics import EdgeMetrics
from edge_agent.settings import EdgeSettings
from gateway.errors import Overloaded, RateLimited
from gateway.hosting.settings import GatewaySettings
from gateway.keys import KeyLimits
from gateway.ports import Job
from gateway.tenant_limits import Tenant, TenantMetrics
from gateway.turns import Turns
from local_models.compiler import MAX_WAITING, WAITING, GrammarCompiler
from local_models.constraints import Constraint
from local_models.trial import TrialOutcome
from speculation.messages import Finish, Open, Sampling
from tests.edge_agent.fake_cache import FakeCache, draft_after
from tests.edge_agent.fakes import JOB, FakeVerifiers, deltas, engine, scripted
from tests.local_models.grammars.small import TOKENIZER, asking
from tests.verifier.fake_sessions import rest, running, tenant
from tests.verifier.fake_target import FACTS, SLOW, FakeTarget, opening
from tests.verifier.recording_engine import TOKEN, RecordingEngine, scheduling, text_of
from tests.verifier.served_llama import LONG, job_of, plain, serving
from verifier.llama_target.kv_slots import KvSlots
from verifier.owners import Owners
from verifier.plain_engine import PlainEngine

Ask = Callable[[str, str], Awaitable[object]]


def of_verifier() -> Ask:
    compiler = GrammarCompiler(TOKENIZER, Turns(1, MAX_WAITING, WAITING).take)
    return lambda word, owner: compiler.check(b'{"choice": ["%s"]}' % word.encode(), owner)


def of_edge() -> Ask:
    grammars = EdgeGrammars()

    def ask(word: str, name: str) -> Awaitable[object]:
        owner = Tenant(name, KeyLimits(), TenantMetrics(CollectorRegistry()))
        return grammars.compile(asking(choice=[word]), TOKENIZER, owner)

    return ask


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The words of the grammars that were tried, in order. Each takes a while."""
    words: list[str] = []

    async def check(_: object, constraint: Constraint) -> TrialOutcome:
        words.append(constraint.value[0])  # type: ignore[index]
        await asyncio.sleep(0.01)
        return TrialOutcome(where="choice", reason="tried")

    monkeypatch.setattr("local_models.checker.Checker.check", check)
    return words


@pytest.mark.parametrize("make", [of_verifier, of_edge])
async def test_grammars_are_tried_in_the_tenants_turns(
    make: Callable[[], Ask], tried: list[str]
) -> None:
    ask = make()
    flood = [ask(f"ann{i}", "ann") for i in range(MAX_WAITING + 5)]
    outcomes = await asyncio.gather(*flood, ask("ben", "ben"), return_exceptions=True)

    assert tried.index("ben") <= 2  # one runs, and one of ann is next
    assert sum(isinstance(outcome, Overloaded) for outcome in outcomes) == 4  # one is tried
    assert not isinstance(outcomes[-1], Overloaded)


async def test_what_was_tried_before_waits_for_no_turn(tried: list[str]) -> None:
    ask = of_verifier()
    await asyncio.wait([asyncio.ensure_future(ask("known", "ben"))])
    flood = asyncio.gather(*(ask(f"a{i}", "ann") for i in range(9)), return_exceptions=True)
    await asyncio.sleep(0)
    await asyncio.wait([asyncio.ensure_future(ask("known", "ben"))])

    assert tried[:2] == ["known", "a0"]
    assert "a8" not in tried
    await flood


async def test_a_target_hears_who_asks_for_an_answer() -> None:
    class Hearing(FakeTarget):
        async def check(self, request: Open, tenant: str | None = None) -> None:
            heard.append(tenant)

    ann, heard = tenant(), list[str | None]()
    async with running(Hearing()) as (sessions, _, _m):
        await sessions.open(opening(), ann)
        host = sessions._host
        job = Job("r", (4, 5), 2, Sampling(), 7, owner=ann, identity=FACTS.identity)
        assert [delta async for delta in PlainEngine(host).generate(job)]

    assert heard == [ann.name, ann.name]


def test_what_a_sequence_holds_is_of_use_to_its_owner_alone() -> None:
    slots, prompt = KvSlots(2), tuple(range(50))
    place, _ = slots.take(prompt, "ann")
    slots.release(place, prompt, "ann")

    for other in ("ben", None):
        assert slots.take(prompt, other) == (1 - place, 0)  # the empty one: nothing is lost
        slots.release(1 - place, (), other)
    assert slots.take(prompt, "ann") == (place, 49)
    slots.release(place, prompt, "ann")
    assert slots.take(prompt, "ben") == (1 - place, 0)
    assert slots.take(prompt, "ben") == (place, 0)


@pytest.mark.parametrize(("shared", "again"), [(False, 51), (True, 1)])
async def test_the_draft_model_reads_for_each_owner(shared: bool, again: int) -> None:
    ann, ben, prompt, cache = tenant(), tenant(), list(range(51)), FakeCache(slots=1)
    with closing(LlamaDrafter(cache, share_prefixes=shared)) as drafter:
        rows = []
        for owner in (ann, ann, ben, ann):
            before = cache.rows
            slot = drafter.take(prompt, owner)
            await draft_after(slot, prompt)
            assert slot is not None
            slot.leave()
            rows.append(cache.rows - before)

    assert rows == [51, 1, again, again]


@pytest.mark.models
@pytest.mark.parametrize("shared", [False, True])
async def test_the_embedded_target_reads_for_each_tenant(shared: bool) -> None:
    def taking(*arguments: object) -> tuple[int, int]:
        taken.append(take(*arguments))
        return taken[-1]

    taken, texts = list[tuple[int, int]](), list[list[int]]()
    async with serving() as host:
        target = cast(Any, host.ready())
        target.owners, take = Owners(shared), target._kv_slots.take
        target._kv_slots.take = taking
        for name in ("ann", "ann", "ben"):
            job = replace(job_of(host, LONG, 0.0), owner=SimpleNamespace(identity=name))
            texts.append(await plain(host, job))

    whole = len(job.prompt) - 1
    assert [cached_tokens for _, cached_tokens in taken] == [0, whole, whole if shared else 0]
    assert texts == [texts[0]] * 3


async def test_what_judging_takes_for_one_session_gives_no_other_fewer_rows() -> None:
    """A grammar or a penalty takes milliseconds a row: were they learned, no draft token of any
    session would be judged, long after the one that asked for them."""
    engine = RecordingEngine(pass_s=0.5)
    engine.extra_judging_s = 0.49
    async with scheduling(engine) as sessions:
        slot = sessions.open(prompt=(1,), max_tokens=8, fill="always")
        sessions.assign(slot, 0)
        sessions.receive(slot, *[TOKEN] * 7)
        await text_of(slot)

        assert 0.0 < sessions.machine.latency.of(64) < 0.49


async def test_no_answer_begins_once_those_that_run_have_used_up_a_minutes_tokens() -> None:
    ann = tenant(tokens_a_minute=3)
    async with running() as (sessions, _, _m):
        session = await sessions.open(opening(prompt=(SLOW,)), ann)
        for _ in range(3):
            await session.read()

        with pytest.raises(RateLimited, match="3 tokens a minute"):
            await sessions.open(opening(), ann)
        assert session.ending is None
        *_, last = await rest(session)
        assert isinstance(last, Finish)


@pytest.mark.parametrize(
    ("known", "shared", "differ"),
    [(True, False, True), (True, True, False), (False, False, False)],
)
async def test_an_edge_tells_its_tenants_apart(known: bool, shared: bool, differ: bool) -> None:
    """An edge is one tenant to its verifier, and may have many."""
    verifier = FakeTarget()
    owners = []
    for name in ("ann", "ben", "ann"):
        verifiers = FakeVerifiers(scripted(Finish("stop")))
        if known:
            verifiers.known = structs.replace(verifiers.known, features=["cache_salt"])
        metrics = EdgeMetrics(CollectorRegistry())
        settings = EdgeSettings(api_keys=("one", "two"), share_prefixes=shared)  # type: ignore[arg-type]
        edge = engine(verifiers, metrics, settings=settings)
        owner = Tenant(name, KeyLimits(), TenantMetrics(CollectorRegistry()))
        assert await deltas(edge.generate(replace(JOB, owner=owner)))
        (request,) = verifiers.opened
        owners.append(verifier.owners.of_prefixes("edge", request))

    assert owners[0] == owners[2]
    assert (owners[0] != owners[1]) == differ
    assert owners[0] != verifier.owners.of_prefixes("other edge", request)


@pytest.mark.parametrize(
    ("settings", "separate"),
    [
        ({}, False),
        ({"api_keys": ("one",)}, False),
        ({"api_keys": ("one", "two")}, True),
        ({"keys_file": "keys.toml"}, True),
        ({"keys_file": "keys.toml", "share_prefixes": True}, False),
    ],
)
def test_prefixes_are_separate_as_soon_as_there_are_several_keys(
    settings: dict[str, object], separate: bool
) -> None:
    assert GatewaySettings.model_validate(settings).separates_prefixes == separate
