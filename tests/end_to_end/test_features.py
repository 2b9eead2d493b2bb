"""Every feature of the chat API gives the same message with and without an edge.

Calls, reasoning and grammars depend on the chat template, so the target has one that shows
tools and opens reasoning. What is compared is the whole answer, as a client gets it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Final

import httpx
import pytest

from bench.run.services import Services
from tests.end_to_end.features import FEATURES, FEW, PROMPTS, TOOLS, asked
from tests.local_models.chats import Json, result, user
from tests.verifier.conftest import metrics

pytestmark = [pytest.mark.models, pytest.mark.asyncio(loop_scope="session")]


EACH_ONCE: Final = pytest.mark.parametrize(
    ("feature", "heats", "prompts"),
    [
        *((name, (float(i % 2),), FEW) for i, name in enumerate(FEATURES)),
        *(pytest.param(name, (0.0, 1.0), PROMPTS, marks=pytest.mark.long) for name in FEATURES),
    ],
    ids=[f"{name}{more}" for more in ("", "-all") for name in FEATURES],
)
"""Without `--long`, each feature has one temperature and two prompts: the features share what
judges drafts, and their neighbours have the other temperature."""

WRONG: Final = "An entirely different text, which is wrong. " * 3


def predicted(text: str) -> Json:
    return {"prediction": {"type": "content", "content": text}}


def seen(answer: Json) -> Json:
    """Return what must be the same of an answer: all but ids, times, and counts of drafts and
    of what caches had."""
    (choice,) = answer["choices"]
    calls = choice["message"].get("tool_calls", ())
    functions = [call.get("function", call.get("custom")) for call in calls]
    details = dict.fromkeys(("prompt_tokens_details", "completion_tokens_details"))
    usage = {**answer["usage"], **details}
    thought = answer["usage"]["completion_tokens_details"]["reasoning_tokens"]
    message = {**choice["message"], "tool_calls": functions}
    return {**choice, "message": message, "usage": usage, "reasoning_tokens": thought}


def counted(answers: Sequence[Json], name: str) -> int:
    return sum(answer["metrics"]["speculative_decoding"][name] for answer in answers)


def right(plain: Sequence[Json]) -> list[Json]:
    """Return settings that predict each answer."""
    return [predicted(answer["choices"][0]["message"]["content"]) for answer in plain]


@EACH_ONCE
async def test_a_message_is_the_same_with_right_and_with_useless_drafts(
    services: Services, feature: str, heats: Sequence[float], prompts: Sequence[str]
) -> None:
    own, edges = FEATURES[feature], services.edge_urls

    for heat in heats:
        plain = await asked(services.verifier_url, heat, [own] * len(prompts), prompts)
        eager, bad = await asyncio.gather(
            *(
                asked(edges[name], heat, [own] * len(prompts), prompts)
                for name in ("eager", "bad")
            )
        )

        check_shape(feature, plain)
        assert list(map(seen, eager)) == list(map(seen, plain))
        assert list(map(seen, bad)) == list(map(seen, plain))
        assert counted(eager, "num_accepted_draft_tokens")
        assert counted(bad, "num_draft_tokens")


@pytest.mark.parametrize("feature", ["shaped", "sentence"])
async def test_a_message_is_the_same_with_a_right_and_with_a_wrong_prediction(
    services: Services, feature: str, is_long: bool
) -> None:
    own, url = FEATURES[feature], services.edge_urls["past"]  # it drafts nothing itself

    for heat in (0.0, 1.0):
        plain = await asked(services.verifier_url, heat, [own] * len(PROMPTS))
        predictions = (right(plain), [predicted(WRONG)] * len(PROMPTS))
        hit, missed = [
            await asked(url, heat, [own | each for each in given]) for given in predictions
        ]

        assert list(map(seen, hit)) == list(map(seen, plain))
        assert list(map(seen, missed)) == list(map(seen, plain))
        if is_long:  # a busy host may judge none
            assert predicted_tokens(hit) > predicted_tokens(missed)


def predicted_tokens(answers: Sequence[Json]) -> int:
    """Return how many tokens of predictions are in the answers."""
    details = [answer["usage"]["completion_tokens_details"] for answer in answers]
    return sum(each["accepted_prediction_tokens"] for each in details)


def check_shape(feature: str, plain: Sequence[Json]) -> None:
    """Check that the answers have what the feature is about."""
    messages = [answer["choices"][0]["message"] for answer in plain]
    if feature == "required":
        assert all(message["tool_calls"] for message in messages)
    if feature == "lark":
        assert all(message["tool_calls"][0]["custom"]["input"] for message in messages)
    if feature in ("schema", "compact"):
        assert all(message["content"].lstrip().startswith("{") for message in messages)
    if feature == "reasoning":
        assert all(message["reasoning_content"] for message in messages)


def held(found: Mapping[str, float]) -> float:
    """Return the share of the KV cache that sessions hold."""
    name = "picospec:kv_cache_usage_perc"
    return sum(value for series, value in found.items() if series.startswith(name))


async def prefilled(services: Services) -> float:
    """Return how many prompt tokens the target has decoded so far, once all sessions ended."""
    async with httpx.AsyncClient(base_url=services.verifier_url, trust_env=False) as http:
        while held(found := await metrics(http)):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    return found["picospec:prefilled_tokens_total"]


@pytest.mark.parametrize("heat", [0.0, 1.0])
@pytest.mark.parametrize("arm", ["plain", "eager"])
async def test_the_next_turn_reads_no_token_of_the_calls_before_it_again(
    services: Services, arm: str, heat: float
) -> None:
    url = {"plain": services.verifier_url, **services.edge_urls}[arm]
    asks = {"tools": TOOLS, "temperature": heat, "seed": 3, "max_tokens": 60}
    chat = [user(f"{arm} {heat}: how warm is it in Zürich?")]  # no other test's KV serves it
    async with httpx.AsyncClient(trust_env=False, timeout=300) as http:

        async def turn(**more: object) -> Json:
            body = {"messages": chat, **asks, **more}
            return (await http.post(f"{url}/v1/chat/completions", json=body)).json()

        first = await turn(tool_choice="required", parallel_tool_calls=False)
        message = first["choices"][0]["message"]
        assert first["choices"][0]["finish_reason"] == "tool_calls"
        before = await prefilled(services)
        chat += [message, result(1, "12 °C", tool_call_id=message["tool_calls"][0]["id"])]
        second = await turn(max_tokens=1)
        read = await prefilled(services) - before

    # with drafts, a pass may have generated the end of the turn, after the call, for nothing
    assert 0 < read <= second["usage"]["prompt_tokens"] - first["usage"]["total_tokens"]
