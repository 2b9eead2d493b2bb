"""Checks the draft model: its vocabulary, and its speed here compared to the target's."""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import closing
from statistics import median
from typing import Final

import msgspec

from picospec.cli.doctor.finding import Finding, milliseconds
from picospec.edge_agent.draft.loading import AUTO, NONE, TargetTokenizer, open_context
from picospec.edge_agent.link.connection import read_answer
from picospec.edge_agent.link.uplink import Uplink
from picospec.edge_agent.settings import EdgeSettings
from picospec.gateway.errors import ApiError
from picospec.models.errors import ModelError, NoLlama
from picospec.models.llama_cpp.library import INSTALL
from picospec.models.llama_cpp.model import Model, Segment
from picospec.models.store import Store, fitting_draft
from picospec.models.tokenizer_file import TokenizerCache
from picospec.models.vocabulary import Relation, Vocabulary, relate
from picospec.speculation.messages import Judge, ModelFacts

DRAFT_STEPS: Final = 12
"""This many steps of the draft model are timed, after 64 tokens."""

TARGET_TOKENS: Final = 17
"""The target is timed over this many tokens."""

PROMPT: Final = "1, 2, 3,"
ANSWER_S: Final = 60.0
"""An answer of the target may take this many seconds."""


async def check_drafting(
    settings: EdgeSettings, store: Store, uplink: Uplink, facts: ModelFacts
) -> list[Finding]:
    """Check that the draft model is here, and check its vocabulary and speed."""
    cache = TokenizerCache(store.root / "tokenizers")
    name: str | None = settings.draft_model
    try:
        target = (await TargetTokenizer(uplink, cache, None)()).vocabulary
        name = _draft_name(settings, store, facts, target)
        if name is None:
            return [Finding("draft model", True, "none: only repeated text is drafted")]
        path = store.find(name, "draft").path
        model = await asyncio.to_thread(Model, path, gpu_layers=settings.gpu_layers)
    except ApiError as error:
        return [Finding("vocabulary", False, error.message, "see the verifier's log")]
    except NoLlama as error:
        return [Finding("draft model", False, str(error), INSTALL)]
    except ModelError as error:
        remedy = f"picospec models pull --as draft {name}"
        return [Finding("draft model", False, str(error), remedy)]
    with closing(model):
        relation = relate(target, model.vocabulary)
        draft_s = await asyncio.to_thread(draft_step_s, model, settings)
    return [
        Finding("draft model", True, f"{name}, {milliseconds(draft_s)} a token"),
        check_vocabulary(relation, settings.judge),
        await check_speed(uplink, facts, draft_s),
    ]


def _draft_name(
    settings: EdgeSettings, store: Store, facts: ModelFacts, target: Vocabulary
) -> str | None:
    if settings.drafter == "none" or settings.draft_model == NONE:
        return None
    if settings.draft_model == AUTO:
        return fitting_draft(store, facts.model, target)
    return settings.draft_model


def check_vocabulary(relation: Relation, judge: Judge) -> Finding:
    """Check that the draft model's tokens can serve as drafts for the target."""
    found = {
        "identical": "the draft model has the target's tokens",
        "padded": "the draft model has the target's tokens; padding is never drawn",
        "different": "the draft model has other tokens, which are translated",
    }
    remedy = 'judge = "coupled", or a draft model of the target\'s family'
    ok = relation != "different" or judge == "coupled"
    return Finding("vocabulary", ok, f"{relation}: {found[relation]}", remedy)


def draft_step_s(model: Model, settings: EdgeSettings) -> float:
    """Return the seconds that the draft model takes for a token: the median of some steps."""
    seconds = []
    with closing(open_context(model, settings, 256)) as context:
        context.decode([Segment(0, 0, [0] * 64, 1)])
        for position in range(64, 64 + DRAFT_STEPS):
            began_s = time.perf_counter()
            context.decode([Segment(0, position, [0], 1)])
            seconds.append(time.perf_counter() - began_s)
    return median(seconds)


async def check_speed(uplink: Uplink, facts: ModelFacts, draft_s: float) -> Finding:
    """Time the target alone: a draft model that takes longer for a token gains nothing."""
    try:
        pass_s = await target_token_s(uplink, facts)
    except (ApiError, TimeoutError) as error:
        reason = f"the target alone does not answer: {error}"
        return Finding("speed", False, reason, "see the verifier's log")
    found = (
        f"a token takes the target {milliseconds(pass_s)}, and the draft model"
        f" {milliseconds(draft_s)}; the round trip takes {milliseconds(uplink.rtt_s)}"
    )
    remedy = "a smaller draft model, or a GPU for it: one as slow as the target gains nothing"
    return Finding("speed", draft_s < pass_s, found, remedy)


async def target_token_s(uplink: Uplink, facts: ModelFacts) -> float:
    """Return the seconds that the target alone takes for a token.

    Raises ApiError, TimeoutError.
    """
    await _timed(uplink, facts, 1)  # reads the prompt, whose cache is kept
    first_s, _ = await _timed(uplink, facts, 1)
    all_s, tokens = await _timed(uplink, facts, TARGET_TOKENS)
    return max(all_s - first_s, 1e-6) / max(tokens - 1, 1)


async def _timed(uplink: Uplink, facts: ModelFacts, max_tokens: int) -> tuple[float, int]:
    """Return the seconds and the number of tokens of an answer of the target alone."""
    asked = {
        "model": facts.model,
        "prompt": PROMPT,
        "max_tokens": max_tokens,
        "temperature": 0,
    }
    body, began_s = msgspec.json.encode(asked), time.perf_counter()
    async with asyncio.timeout(ANSWER_S), uplink.ask("/v1/completions", body) as response:
        answer = await read_answer(response)
    seconds = time.perf_counter() - began_s
    return seconds, int(json.loads(answer.content)["usage"]["completion_tokens"])
