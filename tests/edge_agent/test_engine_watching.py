"""An engine tells those who watch an answer what happens, and nobody else."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from picospec.edge_agent import answer as making
from picospec.gateway.errors import Unavailable
from picospec.gateway.ports import Delta
from picospec.gateway.watching import Chain, Event, LinkUse, Pass
from picospec.speculation.protocol.messages import Commit, Finish, Totals
from tests.edge_agent.engines import JOB, FakeUplink, deltas, engine
from tests.edge_agent.fakes import ScriptedLink, on, quiet, scripted, sent

WATCHED = replace(JOB, watched=True)
COMMIT = Commit(0, 0, (3, 4, 90), accepted=2, queue_s=0.003, pass_s=0.02)
FINISH = Finish("length", Totals(1, 4, 2, 0))


@pytest.fixture(autouse=True)
def quick_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(making, "LOOK_S", 0.001)


def kinds(events: tuple[Event, ...]) -> list[type]:
    return [type(event) for event in events]


async def test_the_chain_and_the_link_are_told_while_nothing_is_committed() -> None:
    seen = asyncio.Event()
    edge = engine(FakeUplink(scripted(sent(4), on(seen), COMMIT, FINISH)))
    told = list[Delta]()

    async with asyncio.timeout(2):
        async for delta in edge.generate(WATCHED):
            told.append(delta)
            if any(isinstance(e, Chain) and e.tokens >= 4 for e in delta.events):
                seen.set()

    first = told[0]
    assert first.tokens == ()
    assert set(kinds(first.events)) == {Chain, LinkUse}
    (committed,) = [delta for delta in told if delta.tokens]
    assert committed.origins == ("draft", "draft", "target")
    assert kinds(committed.events) == [Pass, Chain]
    assert told[-1].finish == "length"
    assert told[-1].events == ()


async def test_an_answer_that_nobody_watches_has_tokens_only() -> None:
    edge = engine(FakeUplink(scripted(sent(4), quiet, COMMIT, FINISH)))

    told = await deltas(edge.generate(JOB))

    assert [delta.tokens for delta in told] == [(3, 4, 90), ()]
    assert all(delta.origins is None and not delta.events for delta in told)


async def test_an_error_is_raised_as_itself_and_the_looking_ends() -> None:
    async def lose(_: ScriptedLink) -> None:
        raise Unavailable("gone")

    edge = engine(FakeUplink(scripted(sent(2), lose)))

    with pytest.raises(Unavailable, match="gone"):
        await deltas(edge.generate(WATCHED))

    assert len(asyncio.all_tasks()) == 1
