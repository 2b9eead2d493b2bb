"""Verifiers behind a name, which come and go, on a virtual clock."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from random import Random

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agent.link import names
from edge_agent.link.known_verifiers import Event
from edge_agent.link.names import LOOK_S
from gateway.errors import ApiError
from tests.edge_agent.fakes import NAMED, Fleet
from tests.virtual_time import run


@asynccontextmanager
async def followed() -> AsyncIterator[Fleet]:
    """Give a fleet whose name is followed, whatever the test does."""
    fleet = Fleet()
    watching = asyncio.create_task(fleet.edge.watch())
    yield fleet
    assert not watching.done()
    watching.cancel()
    await asyncio.wait([watching])
    await fleet.edge.close()
    assert len(asyncio.all_tasks()) == 1


@pytest.fixture
async def fleet() -> AsyncIterator[Fleet]:
    async with followed() as fleet:
        yield fleet


async def test_the_name_stands_for_a_verifier_until_one_has_given_its_facts(
    fleet: Fleet,
) -> None:
    fleet.found = ["10.0.0.1"]
    fleet.at("10.0.0.1").up = False
    await asyncio.sleep(10)
    assert fleet.used == [""]
    with pytest.raises(ApiError):
        await fleet.edge.facts()

    fleet.at("10.0.0.1").up = True
    await asyncio.sleep(10)

    assert fleet.used == ["10.0.0.1"]
    assert (await fleet.edge.facts()).model == NAMED.model


async def test_a_lost_verifier_makes_the_edge_ask_the_name_at_once(fleet: Fleet) -> None:
    fleet.found = ["10.0.0.1", "10.0.0.2"]
    await asyncio.sleep(3 * LOOK_S + 1)
    asked = fleet.asked
    fleet.found = ["10.0.0.2"]

    fleet.edge.all[0].note(Event.LOST)
    await asyncio.sleep(0.1)

    assert (fleet.asked, fleet.used) == (asked + 1, ["10.0.0.2"])
    assert asked <= 5


async def test_one_of_another_identity_takes_no_answer_of_the_first(fleet: Fleet) -> None:
    fleet.found = ["10.0.0.1"]
    await asyncio.sleep(1)
    other = msgspec.structs.replace(NAMED, identity="j")
    fleet.at("10.0.0.2").facts = msgspec.json.encode(other)
    fleet.found = ["10.0.0.1", "10.0.0.2"]
    await asyncio.sleep(LOOK_S + 1)
    assert fleet.used == ["10.0.0.1", "10.0.0.2"]

    fleet.at("10.0.0.1").up = False
    await asyncio.sleep(LOOK_S)

    chosen = fleet.edge.choose("i")
    assert chosen is None or "10.0.0.2" not in chosen.url
    assert (await fleet.edge.facts()).identity == "j"  # of new answers


async def test_an_answer_ends_where_it_is_when_its_verifier_leaves_the_name(
    fleet: Fleet,
) -> None:
    fleet.found = ["10.0.0.1", "10.0.0.2"]
    await asyncio.sleep(LOOK_S)
    leaves = fleet.edge.all[0]
    leaves.open_sessions += 1
    fleet.found = [v.url.split("(")[1].strip(")") for v in fleet.edge.all[1:]]
    await asyncio.sleep(2 * LOOK_S)
    assert leaves not in fleet.edge.all
    assert leaves.label in shown(fleet)

    leaves.open_sessions -= 1
    await asyncio.sleep(2 * LOOK_S)

    assert leaves.label not in shown(fleet)
    assert fleet.edge.current.label in shown(fleet)


def shown(fleet: Fleet) -> str:
    registries = fleet.metrics.verifier_ready
    return " ".join(
        str(sample.labels) for each in registries.collect() for sample in each.samples
    )


async def befall(fleet: Fleet, chance: Random) -> None:
    """Let names and verifiers change at random, and in the end be as they should."""
    every = [f"10.0.0.{i}" for i in range(1, chance.choice([3, 6, 80]))]
    for _ in range(20):
        address = chance.choice(every)
        match chance.randrange(6):
            case 0:
                fleet.found = chance.choice([OSError("no answer"), list[str]()])
            case 1:
                fleet.at(address).up = not fleet.at(address).up
            case 2 if fleet.edge.all:
                chance.choice(fleet.edge.all).note(chance.choice([*Event]))
            case _:
                fleet.found = chance.sample(every, chance.randint(1, len(every)))
        await asyncio.sleep(chance.choice([0.0, 0.1, 3.0, 20.0]))
        assert fleet.edge.current in fleet.edge.all
    if not isinstance(fleet.found, list) or not fleet.found:
        fleet.found = every[:2]
    for each in fleet.behind.values():
        each.up = True
    await asyncio.sleep(60)


@pytest.mark.system
@given(st.integers(0, 2**32))
@settings(max_examples=150, deadline=None)
def test_whatever_the_name_says_there_is_a_verifier_and_in_the_end_it_is_followed(
    seed: int,
) -> None:
    async def main() -> None:
        async with followed() as fleet:
            await befall(fleet, Random(seed))

            assert isinstance(fleet.found, list)
            assert set(fleet.used) <= set(fleet.found)
            assert len(fleet.used) == min(len(fleet.found), names.MAX_ADDRESSES)
            for _ in range(3):
                assert (chosen := fleet.edge.choose("i")) is not None
                assert chosen.url.strip(")").split("(")[1] in fleet.found

    run(main())
