"""The main promise on real models and real services: the edge says what the target says.

`python -m picospec.bench.identity` asks all prompts for longer answers; this is the short form.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import pytest

from picospec.bench.data.prompts import Prompt, read
from picospec.bench.identity.answers import Answer, ask
from picospec.bench.identity.comparison import EDGES, batched, compare
from picospec.bench.run.services import Services, ServicesPlan
from picospec.gateway.tokenizer import NONE

pytestmark = pytest.mark.models

PAIRS = [
    pytest.param("smollm2", 16, ["far", "noise", "eager"], id="smollm2"),
    pytest.param("qwen2.5-coder", 12, ["far", "eager"], id="qwen2.5-coder"),
]

SHAPED = {
    "presence_penalty": 0.8,
    "frequency_penalty": 0.3,
    "repetition_penalty": 1.2,
    "logit_bias": {"28": 5.0, "30": -100.0, "198": 2.0},
    "min_tokens": 12,
}
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "favourite_colour": {"enum": ["red", "green", "blue"]},
    },
    "required": ["name", "age", "favourite_colour"],
    "additionalProperties": False,
}
LIST = ", ".join(["apples", "pears", "plums", "figs", "dates", "limes", "nuts"] * 3)
COPY = Prompt("copy/1", "edit", f"Say this list again, word by word:\n\n{LIST}\n\n{LIST}")


async def asked(
    services: Services,
    prompts: Sequence[Prompt],
    temperatures: Sequence[float],
    tokens: int,
    settings: Mapping[str, object] = NONE,
) -> list[Answer]:
    """Ask the plain engine and every edge; what is different stays unexplained."""
    compared = compare(
        services.verifier_url,
        services.edge_urls,
        batched(temperatures, prompts, 1),
        partial(ask, tokens=tokens, likeliest=None, settings=settings),
        lambda plain, edge: None,
    )
    return [answer async for answer in compared]


@pytest.mark.parametrize(("pair", "tokens", "edges"), PAIRS)
async def test_the_text_is_the_same_with_and_without_an_edge(
    pair: str, tokens: int, edges: list[str]
) -> None:
    prompts = read(per_family=1)
    plan = ServicesPlan(pair, pair, {name: EDGES[name] for name in edges})

    async with Services(plan) as services:
        answers = await asked(services, prompts, [0.0, 1.0], tokens)

    assert [answer for answer in answers if answer.identical is False] == []
    accepted = sum(answer.reply.accepted for answer in answers)
    assert accepted > 0  # else the drafts were not put to the test


@pytest.mark.parametrize("edges", [["far", "eager"], ["noise", "bad"]], ids=["own", "hostile"])
async def test_the_text_is_the_same_with_a_draft_model_of_another_vocabulary(
    edges: list[str],
) -> None:
    prompts = read(per_family=1)
    plan = ServicesPlan(
        "smollm2", "qwen2.5-coder-0.5b-q4_0", {name: EDGES[name] for name in edges}
    )

    async with Services(plan) as services:
        answers = await asked(services, prompts, [0.0, 1.0], 16)

    assert [answer for answer in answers if answer.identical is False] == []
    drafted, accepted = (
        sum(getattr(answer.reply, count) for answer in answers)
        for count in ("drafted", "accepted")
    )
    assert drafted > 0
    assert accepted > 0 or "noise" in edges


async def test_the_text_is_the_same_when_it_is_looked_up() -> None:
    plan = ServicesPlan("smollm2", "smollm2", {name: EDGES[name] for name in ("none", "far")})

    async with Services(plan) as services:
        answers = await asked(services, [COPY], [0.0, 1.0], 48)

    assert [answer for answer in answers if answer.identical is False] == []
    alone = [a.reply for a in answers if a.arm == "none"]  # without a draft model
    assert sum(reply.drafted for reply in alone) > 0
    assert sum(reply.accepted for reply in alone) > 0


async def test_a_text_shaped_by_penalties_is_the_same_with_right_and_useless_drafts() -> None:
    edges = {name: EDGES[name] for name in ("eager", "noise")}

    async with Services(ServicesPlan("smollm2", "smollm2", edges)) as services:
        answers = await asked(services, read(per_family=2)[:6], [0.0, 1.0], 12, SHAPED)

    assert [answer for answer in answers if answer.identical is False] == []
    eager = [answer.reply for answer in answers if answer.arm == "eager"]
    assert sum(reply.accepted for reply in eager) > 30


@pytest.mark.parametrize(
    "options", [{}, {"whitespace_flexible": False}], ids=["free", "compact"]
)
async def test_a_text_of_a_json_schema_is_the_same_with_right_and_useless_drafts(
    options: Mapping[str, object],
) -> None:
    edges = {name: EDGES[name] for name in ("eager", "noise")}
    constraint = {"json": {**PERSON, "x-guidance": options}}

    async with Services(ServicesPlan("smollm2", "smollm2", edges)) as services:
        answers = await asked(
            services, read(per_family=2)[:6], [0.0, 1.0], 64, {"structured_outputs": constraint}
        )

    assert [answer for answer in answers if answer.identical is False] == []
    eager = [answer.reply for answer in answers if answer.arm == "eager"]
    assert sum(reply.accepted for reply in eager) > 30
    complete = [json.loads(reply.text) for reply in eager if reply.tokens < 64]
    assert len(complete) > 3
    assert {tuple(value) for value in complete} == {tuple(PERSON["required"])}


async def test_separate_judging_runs_end_to_end_at_temperature_1() -> None:
    prompts = read(per_family=1)
    waited_for = replace(EDGES["separate"], fill="never")  # else passes may overtake all drafts
    plan = ServicesPlan("smollm2", "smollm2", {"separate": waited_for})

    async with Services(plan) as services:
        answers = await asked(services, prompts, [1.0], 24)

    separate = [answer for answer in answers if answer.arm == "separate"]
    assert all(answer.reply.tokens == 24 or answer.reply.text for answer in separate)
    assert sum(answer.reply.accepted for answer in separate) > 0


async def test_the_text_is_the_same_with_a_right_and_a_wrong_prediction() -> None:
    plan = ServicesPlan("smollm2", "smollm2", {name: EDGES[name] for name in ("none", "far")})
    chat = next(prompt for prompt in read(per_family=1) if prompt.family == "chat")

    async with Services(plan) as services:
        (plain, *_) = await asked(services, [chat], [0.0], 24)
        for text in (plain.reply.text, "An entirely different text, which is wrong. " * 4):
            prediction = {"prediction": {"type": "content", "content": text}}
            answers = await asked(services, [chat], [0.0, 1.0], 24, prediction)

            assert [answer for answer in answers if answer.identical is False] == []
