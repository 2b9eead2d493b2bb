"""Checks the draft model: its vocabulary, and its speed here compared to the target's."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from contextlib import closing
from pathlib import Path
from typing import Final

from edge_agent.draft.loading import AUTO, NONE, footprint_of, length_of
from edge_agent.draft.target_tokenizer import TargetTokenizer
from edge_agent.link.verifier import Verifier
from edge_agent.settings import EdgeSettings
from gateway.errors import ApiError
from local_models.choosing import Consent, DraftModelChoice, HubPolicy, choose_draft
from local_models.errors import ModelError, NoLlama, NotPulled
from local_models.llama_cpp.devices import Placement
from local_models.llama_cpp.library import INSTALL
from local_models.llama_cpp.model import Model
from local_models.store import Store
from local_models.tokenizer_cache import TokenizerCache
from local_models.vocabulary import Relation, Vocabulary, relate
from picospec.answer_progress import NOTEWORTHY
from picospec.expecting import MeasuredPace, pace
from picospec.findings import Finding, milliseconds
from picospec.machine_checks import check_memory
from speculation.model_facts import Judge, ModelFacts

NO_ROOM: Final = "free some memory, or choose a smaller draft model"


async def check_drafting(
    settings: EdgeSettings, store: Store, verifier: Verifier, facts: ModelFacts
) -> list[Finding]:
    """Check that the draft model is here, and check its vocabulary and speed."""
    own = (each.draft_model for each in settings.models if each.name == facts.model)
    if wanted := next(own, None):
        settings = settings.model_copy(update={"draft_model": wanted})
    cache = TokenizerCache(store.root / "tokenizers")
    name: str | None = settings.draft_model
    try:
        target = (await TargetTokenizer(verifier, cache, None)()).vocabulary
        choice = await asyncio.to_thread(draft_choice, settings, store, facts, target)
        if (name := choice.name) is None:
            finding = f"none: only repeated text is drafted; {choice.why}"
            warns = bool(choice.remedy)
            return [Finding("draft model", True, finding, choice.remedy, warns=warns)]
        path = store.find(name, "draft").path
        memory = await asyncio.to_thread(check_edge_memory, path, settings)
        model = await asyncio.to_thread(Model, path, placement=Placement(settings.gpu_layers))
    except ApiError as error:
        return [Finding("vocabulary", False, error.message, "see the verifier's log")]
    except NoLlama as error:
        return [Finding("draft model", False, str(error), INSTALL)]
    except ModelError as error:
        remedy = f"picospec models pull --as draft {name}"
        if isinstance(error, NotPulled):
            remedy += ": then the doctor times it"
            finding = f"{name} is not here; an edge fetches it when it starts"
            return [Finding("draft model", True, finding, remedy, warns=True)]
        return [Finding("draft model", False, str(error), remedy)]
    with closing(model):
        relation = relate(target, model.vocabulary)
        return [
            Finding("draft model", True, f"{name}: {choice.why}"),
            memory,
            check_vocabulary(relation, settings.judge),
            *await check_pace(pace(verifier, facts, model, settings)),
        ]


def check_edge_memory(path: Path, settings: EdgeSettings) -> Finding:
    """Compare what an edge takes with this draft model with what is free. Raises CannotOpen."""
    with closing(Model(path, vocabulary_only=True)) as model:
        length = length_of(model, settings, settings.context_tokens)
        return check_memory("edge", footprint_of(model, length))


def draft_choice(
    settings: EdgeSettings, store: Store, facts: ModelFacts, target: Vocabulary
) -> DraftModelChoice:
    """Return the draft model that an edge would have now: the doctor fetches none."""
    if settings.draft_model == NONE:
        return DraftModelChoice(None, "the settings want none")
    if settings.draft_model != AUTO:
        return DraftModelChoice(settings.draft_model, "the settings name it")
    consent: Consent = "never" if settings.draft_from_hub == "never" else "ask"
    policy = HubPolicy(consent, settings.draft_max_gb, ask=lambda _: False)
    return choose_draft(store, facts.model, target, policy)


def check_vocabulary(relation: Relation, judge: Judge) -> Finding:
    """Check that the draft model's tokens can serve as drafts for the target."""
    findings = {
        "identical": "the draft model has the target's tokens",
        "padded": "the draft model has the target's tokens; padding is never drawn",
        "different": "the draft model has other tokens, which are translated",
    }
    same, ok = relation != "different", relation != "different" or judge == "coupled"
    remedy = "a draft model of the target's family gains more"
    if not ok:
        remedy = 'judge = "coupled", or a draft model of the target\'s family'
    return Finding(
        "vocabulary", ok, f"{relation}: {findings[relation]}", remedy, warns=not same
    )


async def check_pace(measuring: Awaitable[MeasuredPace]) -> list[Finding]:
    """Check the speed of both ends, and what it gains, once it is measured."""
    try:
        pace = await measuring
    except (ApiError, TimeoutError) as error:
        reason = f"the target alone does not answer: {error}"
        return [Finding("speed", False, reason, "see the verifier's log")]
    except ModelError as error:
        return [Finding("speed", False, f"the draft model does not run: {error}", NO_ROOM)]
    return [check_speed(pace), check_gain(pace)]


def check_speed(pace: MeasuredPace) -> Finding:
    """Check that the draft model is faster than the target: else it gains nothing."""
    text = (
        f"a token takes the target {milliseconds(pace.token_s)}, and the draft model"
        f" {milliseconds(pace.draft_s)}; the round trip takes {milliseconds(pace.rtt_s)}"
    )
    remedy = "a smaller draft model, or a GPU for it: one as slow as the target gains nothing"
    return Finding("speed", pace.draft_s < pace.token_s, text, remedy)


def check_gain(pace: MeasuredPace) -> Finding:
    """Warn if the times predict that drafting gains nothing on any kind of text."""
    gains = pace.gains()
    (kind, gain), *more = gains.items()
    others = "".join(f", and {other:.1f} for {each}" for each, other in more)
    shares = " and ".join(f"{share:0.0%}" for share in pace.agreement.values())
    text = (
        f"expect about {gain:.1f} times the server's speed for {kind}{others}. The draft model"
        f" guesses {shares} of the tokens"
    )
    if pace.slowed > 1.02:
        text += f". While it drafts, a token takes the server {pace.slowed:.2f} times as long"
    remedy = "a larger target, a verifier further away, or a draft model nearer to the target"
    return Finding("gain", True, text, remedy, warns=max(gains.values()) < NOTEWORTHY)
