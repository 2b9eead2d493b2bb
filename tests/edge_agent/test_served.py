"""An edge serves each model that its verifiers name, at the verifiers that have it."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from edge_agent.draft.drafter import NoDrafter
from edge_agent.link.connection import Connection
from edge_agent.link.errors import VerifierResponse
from edge_agent.link.known_verifiers import Event
from edge_agent.link.verifier import Verifier
from edge_agent.link.verifiers import Verifiers
from edge_agent.metrics import EdgeMetrics
from edge_agent.served import MAX_MODELS, ServedModel, ServedModels
from edge_agent.settings import EdgeSettings, ModelSettings, load
from gateway.errors import EngineFault, NotFound, Unavailable
from gateway.ports import Facts
from speculation.model_facts import ModelFacts
from tests.edge_agent.fakes import FACTS


class Scripted(Verifier):
    """serves: the name of its model; None while it is away."""

    def __init__(self, number: int, fleet: Fleet) -> None:
        connection = Connection(f"http://v{number}:1")
        super().__init__(connection, fleet.metrics)
        self.learned_facts = lambda: fleet.whole.changed()
        self.serves: str | None = None
        self.asked_facts = 0

    async def check(self, within_s: float = 0.0) -> None:
        await self.facts()

    async def facts(self) -> ModelFacts:
        self.asked_facts += 1
        await asyncio.sleep(0)
        if self.serves is None:
            self.note(Event.LOST)
            raise Unavailable("it is away")
        adapters = {f"{self.serves}-lora": f"{self.serves}-lora-identity"}
        facts = msgspec.structs.replace(
            FACTS, model=self.serves, identity=f"{self.serves}-identity", adapters=adapters
        )
        self.learn(facts)
        self.note(Event.IS_READY)
        self.learned_facts()
        return facts


class Engine:
    def __init__(self, verifiers: Verifiers) -> None:
        self._verifiers = verifiers

    async def facts(self) -> Facts:
        return Facts.of(await self._verifiers.facts())

    async def prepare(self) -> None:
        """Need nothing."""

    async def close(self) -> None:
        """Hold nothing."""


class Source:
    async def introduce(self) -> None:
        """Fetch nothing."""

    def forget(self) -> None:
        """Hold nothing."""


class Fleet:
    """Has the models of an edge with so many verifiers, which serve these names."""

    def __init__(self, *serves: str | None, **settings: object) -> None:
        self.metrics = EdgeMetrics(CollectorRegistry())
        self.each = [Scripted(number, self) for number in range(len(serves))]
        self.serve(*serves)
        self.whole = Verifiers(self.each, self.metrics, 1.0)
        given: EdgeSettings = load(None, {}, settings)
        self.models = ServedModels(self.whole, given, self._make)

    def serve(self, *serves: str | None) -> None:
        for verifier, name in zip(self.each, serves, strict=True):
            verifier.serves = name

    @staticmethod
    def _make(name: str, entry: ModelSettings | None, verifiers: Verifiers) -> ServedModel:
        engine: Any = Engine(verifiers)
        source: Any = Source()
        aliases = entry.aliases if entry else ()
        return ServedModel(name, verifiers, source, NoDrafter(), engine, (), aliases)

    async def answering(self, name: str | None) -> str:
        """Return the name of the model that answers for this name."""
        return (await (await self.models.find(name)).facts_of(name)).model

    @property
    def listed(self) -> list[tuple[str, list[int]]]:
        return [
            (model.name, [self.each.index(v) for v in model.verifiers.all])  # type: ignore[arg-type]
            for model in self.models.all
        ]


async def test_a_model_has_the_verifiers_that_serve_its_name() -> None:
    fleet = Fleet("a", "b", "a")

    assert await fleet.answering("b") == "b"  # also as the first question
    assert fleet.listed == [("a", [0, 2]), ("b", [1])]
    assert [await fleet.answering(name) for name in ("a", None, "b-lora")] == [
        "a",
        "a",
        "b-lora",
    ]


async def test_a_name_that_nobody_serves_is_refused_with_the_names_that_are() -> None:
    fleet = Fleet("a", "b")

    with pytest.raises(NotFound, match="'c' does not exist; this service has 'a', 'b'"):
        await fleet.answering("c")
    any_name = Fleet("a", "b", accept_any_model=True, model_aliases=("usual",))
    assert [await any_name.answering(name) for name in ("c", "usual", "b")] == ["a", "a", "b"]


async def test_a_verifier_that_comes_back_with_another_model_moves_there() -> None:
    fleet = Fleet("a", "b")
    await fleet.models.reachable()

    fleet.serve("b", "b")
    with pytest.raises(Unavailable):
        await fleet.answering("a")
    assert fleet.listed == [("b", [0, 1])]


async def test_a_model_that_is_away_is_listed_and_costs_the_others_nothing() -> None:
    fleet = Fleet("a", "b", None)
    await fleet.models.reachable()
    away, unknown = fleet.each[1:]
    away.note(Event.LOST)
    asked = away.asked_facts, unknown.asked_facts

    assert [each.name for each in await fleet.models.reachable()] == ["a"]
    assert await fleet.answering("a") == "a"
    assert fleet.models.away == ["b"]
    assert (away.asked_facts, unknown.asked_facts) == asked


async def test_where_no_model_is_named_the_first_that_can_be_reached_answers() -> None:
    fleet = Fleet(None, "b")

    assert await fleet.answering(None) == "b"
    fleet.serve("a", "b")
    fleet.each[0].latest = None
    await fleet.models.reachable()
    assert await fleet.answering(None) == "a"


async def test_a_verifier_that_was_away_is_asked_again_for_a_name_that_nobody_has() -> None:
    fleet = Fleet("a", None)
    with pytest.raises(NotFound):
        await fleet.answering("b")
    await fleet.models.reachable()

    fleet.serve("a", "b")
    assert await fleet.answering("b") == "b"


async def test_the_settings_name_models_before_a_verifier_does() -> None:
    entries = [{"name": "a"}, {"name": "b", "aliases": ["small"]}]
    fleet = Fleet("b", models=entries, verifier_urls=["http://v0"])

    assert await fleet.answering("small") == "b"
    assert fleet.listed == [("a", []), ("b", [0])]
    assert (fleet.models.first.name, fleet.models.away) == ("a", ["a"])


async def test_models_beyond_the_bound_are_not_served() -> None:
    fleet = Fleet(*(f"m{number}" for number in range(MAX_MODELS + 1)))

    assert len(await fleet.models.reachable()) == MAX_MODELS
    with pytest.raises(NotFound):
        await fleet.answering(f"m{MAX_MODELS}")


async def test_a_models_own_name_goes_before_aliases_and_these_before_adapters() -> None:
    entries = [{"name": "a", "aliases": ["b", "alias"]}]
    fleet = Fleet("a", "b", "c", models=entries, verifier_urls=["http://v0"])
    await fleet.models.reachable()
    for verifier, names in zip(
        fleet.each, [("b", "c", "alias", "adapter"), ("alias",)], strict=False
    ):
        known = verifier.model
        verifier.model = replace(known, names=known.names.union(names))

    asked = ("a", "b", "c", "alias", "adapter", "c-lora")
    models = [model.name for name in asked if (model := fleet.models.named(name))]
    assert models == ["a", "b", "c", "a", "a", "c"]


async def test_a_verifier_that_takes_ever_new_names_leaves_room_for_others() -> None:
    fleet = Fleet("a", "b")
    await fleet.models.reachable()
    for number in range(2 * MAX_MODELS):
        fleet.serve(f"m{number}", "b")
        await fleet.each[0].facts()
        await fleet.each[1].facts()

    fleet.serve("new", "b")
    await fleet.each[0].facts()
    assert await fleet.answering("new") == "new"
    assert fleet.listed == [("new", [0]), ("b", [1])]


async def test_a_verifier_of_the_settings_is_used_under_its_name_alone() -> None:
    metrics = EdgeMetrics(CollectorRegistry())
    connection = Connection("http://v0:1")
    verifier = Verifier(connection, metrics, model="small")
    answer = VerifierResponse(200, msgspec.json.encode(FACTS))
    named = VerifierResponse(
        200, msgspec.json.encode(msgspec.structs.replace(FACTS, model="small"))
    )

    assert verifier._read(named).model == "small"
    with pytest.raises(EngineFault, match="the settings name 'small'"):
        verifier._read(answer)


NAMES = st.sampled_from(["a", "b", "c", None])


@given(st.lists(st.tuples(NAMES, NAMES, NAMES), min_size=1, max_size=8))
def test_each_verifier_counts_to_its_model_whatever_happens(
    times: list[tuple[str | None, ...]],
) -> None:
    async def run() -> None:
        fleet = Fleet(None, None, None)
        for serves in times:
            fleet.serve(*serves)
            for verifier in fleet.each:
                verifier.latest = None if verifier.serves else Event.LOST
                if verifier.serves:
                    await verifier.facts()
            served = {name for name in serves if name}
            for name in served:
                assert await fleet.answering(name) == name
            at = [place for _, places in fleet.listed for place in places]
            assert sorted(at) == [0, 1, 2]
            for name, places in fleet.listed:
                assert all(fleet.each[place].model.name in (name, "") for place in places)

    asyncio.run(run())
