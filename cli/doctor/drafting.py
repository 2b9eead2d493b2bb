"""Checks of the draft model: its vocabulary, its speed here, and what it should gain."""

from __future__ import annotations

import asyncio
import time
from contextlib import closing
from statistics import median
from typing import Final

import httpx

from picospec.cli.doctor.finding import Finding, milliseconds
from picospec.cli.doctor.prediction import ACCEPTANCE, speed_up
from picospec.cli.doctor.tls import tls_context
from picospec.edge_agent.draft_model.loading import AUTO, NONE, threads_of
from picospec.edge_agent.link.uplink import Uplink
from picospec.edge_agent.settings import EdgeSettings
from picospec.edge_agent.target_tokenizer import TargetTokenizer
from picospec.gateway.errors import ApiError
from picospec.models.errors import ModelError, NoLlama
from picospec.models.fetching.drafts import fitting_draft
from picospec.models.llama import Context, Model
from picospec.models.llama_library import INSTALL
from picospec.models.segments import Segment
from picospec.models.store import Store
from picospec.models.tokenizing.tokenizer_cache import TokenizerCache
from picospec.models.tokenizing.vocabulary import Relation, Vocabulary, relate
from picospec.speculation.protocol.messages import Judge, ModelFacts

DRAFT_STEPS: Final = 12
"""Steps of the draft model that are timed, after 64 tokens."""

TARGET_TOKENS: Final = 17
"""Tokens that the target is asked for, to be timed."""

PROMPT: Final = "1, 2, 3,"
ANSWER_S: Final = 60.0
WORTHWHILE: Final = 1.1
"""A smaller speed-up, in the kind of text that gains most, is not worth a draft model."""


async def check_drafting(
    settings: EdgeSettings, store: Store, uplink: Uplink, facts: ModelFacts
) -> list[Finding]:
    """Check the draft model: its vocabulary, its speed, and what it should gain."""
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
    found = [
        Finding("draft model", True, f"{name}, {milliseconds(draft_s)} a token"),
        check_vocabulary(relation, settings.judge),
    ]
    try:
        pass_s = await target_token_s(settings, facts)
    except httpx.HTTPError as error:
        reason = f"the target alone does not answer: {error}"
        return [*found, Finding("speed-up", False, reason, "see the verifier's log")]
    return [*found, check_gain(pass_s=pass_s, draft_s=draft_s, rtt_s=uplink.rtt_s)]


def _draft_name(
    settings: EdgeSettings, store: Store, facts: ModelFacts, target: Vocabulary
) -> str | None:
    if settings.drafter == "none" or settings.draft_model == NONE:
        return None
    if settings.draft_model == AUTO:
        return fitting_draft(store, facts.model, target)
    return settings.draft_model


def check_vocabulary(relation: Relation, judge: Judge) -> Finding:
    """Check that the draft model's tokens can be drafts of the target's."""
    found = {
        "identical": "the draft model has the target's tokens",
        "padded": "the draft model has the target's tokens; padding is never drawn",
        "different": "the draft model has other tokens, which are translated",
    }
    remedy = 'judge = "coupled", or a draft model of the target\'s family'
    ok = relation != "different" or judge == "coupled"
    return Finding("vocabulary", ok, f"{relation}: {found[relation]}", remedy)


def draft_step_s(model: Model, settings: EdgeSettings) -> float:
    """Return how long the draft model takes for a token: the median of some steps."""
    context = Context(model, 256, threads=threads_of(settings))
    seconds = []
    with closing(context):
        context.decode([Segment(0, 0, [0] * 64, 1)])
        for position in range(64, 64 + DRAFT_STEPS):
            began_s = time.perf_counter()
            context.decode([Segment(0, position, [0], 1)])
            seconds.append(time.perf_counter() - began_s)
    return median(seconds)


async def target_token_s(settings: EdgeSettings, facts: ModelFacts) -> float:
    """Return how long the target alone takes for a token, in seconds."""
    (verifier,) = settings.verifiers
    key = settings.key_for(verifier)
    headers = {"authorization": f"Bearer {key}"} if key else {}
    async with httpx.AsyncClient(
        base_url=str(verifier),
        headers=headers,
        verify=tls_context(settings),
        timeout=ANSWER_S,
        trust_env=False,
    ) as client:
        await _timed(client, facts, 1)  # the prompt is read, and its cache kept
        first_s, _ = await _timed(client, facts, 1)
        all_s, tokens = await _timed(client, facts, TARGET_TOKENS)
    return max(all_s - first_s, 1e-6) / max(tokens - 1, 1)


async def _timed(
    client: httpx.AsyncClient, facts: ModelFacts, max_tokens: int
) -> tuple[float, int]:
    """Return the seconds and the tokens of an answer of the target alone."""
    body = {
        "model": facts.model,
        "prompt": "1, 2, 3,",
        "max_tokens": max_tokens,
        "temperature": 0,
    }
    began_s = time.perf_counter()
    response = (await client.post("/v1/completions", json=body)).raise_for_status()
    return time.perf_counter() - began_s, int(response.json()["usage"]["completion_tokens"])


def check_gain(*, pass_s: float, draft_s: float, rtt_s: float) -> Finding:
    """Predict the speed-up at this distance, with what drafts are usually worth."""
    gains = {
        kind: speed_up(accepted, pass_s=pass_s, draft_s=draft_s, rtt_s=rtt_s)
        for kind, accepted in ACCEPTANCE.items()
    }
    listed = ", ".join(f"{kind} {gain:.1f}" for kind, gain in gains.items())
    found = f"{listed} times as fast as the target alone ({milliseconds(pass_s)} a token)"
    remedy = "a smaller draft model, a GPU for it, or a nearer verifier"
    return Finding("speed-up", max(gains.values()) >= WORTHWHILE, found, remedy)
