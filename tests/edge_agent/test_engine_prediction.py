"""A prediction, of the client or of an edge with a cache, travels to the verifier."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from dataclasses import replace

import msgspec
import pytest

from edge_agent.draft.drafter import NoDrafter
from edge_agent.engine import EdgeEngine
from edge_agent.settings import EdgeSettings
from gateway.ports import Delta, Job
from speculation.messages import Commit, Finish
from speculation.model_facts import ModelFacts, TokenId
from tests.edge_agent.fakes import (
    FACTS,
    JOB,
    FakeVerifiers,
    ScriptedLink,
    deltas,
    engine,
    on,
    opened,
    quiet,
    scripted,
)

TEXT = "Call me Ishmael. Some years ago"
PREDICTED = replace(JOB, extras={"prediction": TEXT})


async def test_its_tokens_go_to_the_verifier_once_and_are_no_setting() -> None:
    asked = await opened(PREDICTED)

    assert bytes(asked.predicted) == TEXT.encode()
    assert asked.ngram_drafts
    assert asked.sampling.extras == {}


async def test_what_became_of_it_is_told_with_every_delta() -> None:
    right, wrong = tuple(TEXT[:8].encode()), (99, 98, 97)
    script = scripted(quiet, Commit(0, 0, right, 8), Commit(0, 8, wrong), Finish("stop"))

    received = await deltas(engine(FakeVerifiers(script)).generate(PREDICTED))

    counted = [delta.statistics for delta in received if delta.statistics]
    assert [each.accepted_prediction_tokens for each in counted] == [8, 8, 8]
    assert counted[-1].rejected_prediction_tokens >= 8


@pytest.mark.parametrize(
    ("settings", "text", "sent"),
    [
        (EdgeSettings(lookup=False), TEXT, (True, TEXT)),
        (EdgeSettings(), "", (True, "")),
        (EdgeSettings(judge="separate"), TEXT, (False, "")),
        (EdgeSettings(ngram_drafts=False), TEXT, (False, "")),
    ],
)
async def test_only_where_any_draft_token_is_exact_the_verifier_proposes_some(
    settings: EdgeSettings, text: str, sent: tuple[bool, str]
) -> None:
    job = replace(JOB, extras={"prediction": text})

    asked = await opened(job, settings, NoDrafter())

    assert (asked.ngram_drafts, bytes(asked.predicted).decode()) == sent


# --- an edge with a cache predicts what it answered last when the same is asked again


class Owner:
    name = identity = "somebody"


ANSWER = tuple(range(100, 112))
KEPT = EdgeSettings(answer_cache_tokens=1000)
ASKED = replace(JOB, prompt=tuple(range(30)), owner=Owner())
OTHER = msgspec.structs.replace(FACTS, vocabulary="another")


async def answered(settings: EdgeSettings = KEPT) -> tuple[EdgeEngine, FakeVerifiers]:
    """Return an engine that has answered ASKED, and its verifiers."""
    verifiers = FakeVerifiers(scripted(Commit(0, 0, ANSWER), Finish("stop")))
    edge = engine(verifiers, settings=settings)
    await deltas(edge.generate(ASKED))
    assert verifiers.opened[0].predicted == ()
    return edge, verifiers


async def asked_again(
    edge: EdgeEngine, verifiers: FakeVerifiers, job: Job = ASKED
) -> list[Delta]:
    verifiers.link = ScriptedLink(
        scripted(Commit(0, 0, ANSWER, verifier_accepted=11), Finish("stop"))
    )
    return await deltas(edge.generate(job))


async def predicted(
    job: Job = ASKED, settings: EdgeSettings = KEPT, known: ModelFacts = FACTS
) -> tuple[TokenId, ...]:
    """Return what is predicted for a job after ASKED was answered. known: the facts by then."""
    edge, verifiers = await answered(settings)
    verifiers.known = known
    await asked_again(edge, verifiers, job)
    return verifiers.opened[1].predicted


async def test_the_same_question_has_its_answer_predicted() -> None:
    assert await predicted() == ANSWER


async def test_another_key_nobody_in_particular_and_another_target_have_not() -> None:
    assert await predicted(replace(ASKED, owner=Owner())) == ()
    assert await predicted(replace(ASKED, owner=None)) == ()
    assert await predicted(known=OTHER) == ()


@pytest.mark.parametrize(
    "settings",
    [
        EdgeSettings(answer_cache_tokens=0),
        KEPT.model_copy(update={"judge": "separate"}),
        KEPT.model_copy(update={"ngram_drafts": False}),
    ],
)
async def test_nothing_is_predicted_without_the_setting_or_where_the_verifier_does_not_draft(
    settings: EdgeSettings,
) -> None:
    assert await predicted(settings=settings) == ()


async def test_what_the_client_predicts_comes_first() -> None:
    asked = replace(ASKED, extras={"prediction": "Ishmael"})

    assert bytes(await predicted(asked)) == b"Ishmael"


async def test_what_the_cache_expects_is_not_counted_as_a_prediction_of_the_clients() -> None:
    received = await asked_again(*await answered())

    assert [d.statistics.accepted_prediction_tokens for d in received if d.statistics] == [0, 0]


async def test_an_answer_that_was_cancelled_is_kept_as_far_as_it_came() -> None:
    verifiers = FakeVerifiers(scripted(Commit(0, 0, ANSWER[:5]), on(asyncio.Event())))
    edge = engine(verifiers, settings=KEPT)
    async with asyncio.timeout(2), aclosing(edge.generate(ASKED)) as stream:
        await anext(stream)

    await asked_again(edge, verifiers)

    assert verifiers.opened[1].predicted == ANSWER[:5]


async def test_an_owner_whose_cache_is_emptied_has_nothing_predicted() -> None:
    edge, verifiers = await answered()

    await edge.forget(ASKED.owner)
    await asked_again(edge, verifiers)

    assert verifiers.opened[1].predicted == ()
    assert verifiers.salts == [None], "the verifier forgets too"
