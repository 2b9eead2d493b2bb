"""What one tenant asks neither holds up another one nor shows to it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from edge_agent.proposing.grammars import EdgeGrammars
from gateway.errors import Overloaded
from gateway.ports import Job, Sampling
from gateway.tenants.turns import Turns
from models.grammars.compiler import MAX_WAITING, WAITING, GrammarCompiler
from models.grammars.constraint import Constraint
from models.grammars.trial import Outcome
from speculation.protocol.messages import Open
from tests.edge_agent.proposing.test_grammars import asking
from tests.models.grammars.small import TOKENIZER
from tests.verifier.fake_target import FACTS, FakeTarget, opening
from tests.verifier.test_sessions import running
from tests.verifier.test_tenants import tenant
from verifier.plain_engine import PlainEngine

Ask = Callable[[str, object], Awaitable[object]]


def of_verifier() -> Ask:
    compiler = GrammarCompiler(TOKENIZER, Turns(1, MAX_WAITING, WAITING).take)
    return lambda word, owner: compiler.check(b'{"choice": ["%s"]}' % word.encode(), owner)


def of_edge() -> Ask:
    grammars = EdgeGrammars()
    return lambda word, owner: grammars.compile(asking(choice=[word]), TOKENIZER, owner)


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The words of the grammars that were tried, in order. Each takes a while."""
    words: list[str] = []

    async def check(_: object, constraint: Constraint) -> Outcome:
        words.append(constraint.value[0])  # type: ignore[index]
        await asyncio.sleep(0.01)
        return Outcome(where="choice", reason="tried")

    monkeypatch.setattr("models.grammars.checker.Checker.check", check)
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
        async def check(self, request: Open, owner: object = None) -> None:
            heard.append(owner)

    ann, heard = tenant(), list[Any]()
    async with running(Hearing()) as (sessions, _, _m):
        await sessions.open(opening(), ann)
        host = sessions._host
        job = Job("r", (4, 5), 2, Sampling(), 7, owner=ann, identity=FACTS.identity)
        assert [delta async for delta in PlainEngine(host).generate(job)]

    assert heard == [ann, ann]
