"""The main promise on real models and real services: the edge says what the target says.

`python -m bench.identity` asks all prompts for longer answers; this is the short form. Without
`--long`, two families are asked, since a target that reads slowly takes minutes for all.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial

import pytest

from bench.identity import EDGES, SEED, Answer, ask, batched, compare
from bench.prompts import Prompt, read
from bench.run.client import Question
from bench.run.services import Services, ServicesPlan

pytestmark = [pytest.mark.models, pytest.mark.asyncio(loop_scope="session")]

PATIENT = "tests.end_to_end.patient"
LIST = ", ".join(["apples", "pears", "plums", "figs", "dates", "limes", "nuts"] * 3)
FAMILIES = pytest.mark.parametrize(
    "families",
    [slice(2), pytest.param(slice(None), marks=pytest.mark.long)],
    ids=["some", "all"],
)
COPY = Prompt("copy/1", "edit", f"Say this list again, word by word:\n\n{LIST}\n\n{LIST}")


async def asked(
    services: Services,
    edges: Sequence[str],
    prompts: Sequence[Prompt],
    temperatures: Sequence[float],
    tokens: int,
) -> list[Answer]:
    """Ask the plain engine and some edges; what is different stays unexplained."""
    compared = compare(
        services.verifier_url,
        {name: services.edge_urls[name] for name in edges},
        batched(temperatures, prompts, 1),
        partial(ask, of=Question("", 0.0, SEED, tokens)),
        lambda plain, edge: None,
    )
    return [answer async for answer in compared]


async def asked_by_halves(
    services: Services, edges: Sequence[str], families: slice, tokens: int
) -> list[Answer]:
    """Ask every second edge at temperature 0 and the others at 1, where a target takes long."""
    prompts = read(per_family=1)[families]
    cold = await asked(services, edges[::2], prompts, [0.0], tokens)
    return [*cold, *await asked(services, edges[1::2], prompts, [1.0], tokens)]


def different(answers: Iterable[Answer]) -> list[Answer]:
    return [answer for answer in answers if answer.identical is False]


def counted(answers: Iterable[Answer], name: str) -> int:
    return sum(getattr(answer.reply, name) for answer in answers)


@FAMILIES
async def test_the_text_is_the_same_over_a_far_link_and_whatever_is_drafted(
    services: Services, families: slice
) -> None:
    prompts = read(per_family=1)[families]

    answers = await asked(services, ("far", "bad", "eager"), prompts, [0.0, 1.0], 16)

    assert different(answers) == []
    assert counted(answers, "accepted") > 0  # else the drafts were not put to the test


async def test_the_text_is_the_same_when_it_is_looked_up() -> None:
    """The verifier is its own: one that others have kept busy may have learned that the rows of
    so small a target do not pay, and then it judges nothing that is looked up."""
    plan = ServicesPlan(
        "smollm2",
        "smollm2",
        {name: EDGES[name] for name in ("none", "far")},
        edge_module=PATIENT,
    )

    async with Services(plan) as own:
        answers = await asked(own, ("none", "far"), [COPY], [0.0, 1.0], 48)

    assert different(answers) == []
    alone = [answer for answer in answers if answer.arm == "none"]  # without a draft model
    assert counted(alone, "accepted") > 0


@FAMILIES
async def test_the_text_of_the_models_that_ship_is_the_same(families: slice) -> None:
    edges = {name: EDGES[name] for name in ("far", "eager")}
    plan = ServicesPlan("qwen2.5-coder", "qwen2.5-coder", edges, edge_module=PATIENT)

    async with Services(plan) as own:
        answers = await asked_by_halves(own, list(edges), families, 12)

    assert different(answers) == []
    assert counted(answers, "accepted") > 0


@FAMILIES
async def test_the_text_is_the_same_with_a_draft_model_of_another_vocabulary(
    families: slice,
) -> None:
    edges = {name: EDGES[name] for name in ("far", "eager", "noise", "bad")}
    plan = ServicesPlan("smollm2", "qwen2.5-coder-0.5b-q4_0", edges, edge_module=PATIENT)

    async with Services(plan) as own:
        answers = await asked_by_halves(own, list(edges), families, 16)

    assert different(answers) == []
    assert counted(answers, "accepted") > 0
    assert all(
        counted([a for a in answers if a.arm == arm], "drafted") for arm in ("eager", "bad")
    )
