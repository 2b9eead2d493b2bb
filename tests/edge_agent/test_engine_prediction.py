"""The client's prediction becomes draft tokens, and what became of it is counted."""

from __future__ import annotations

from dataclasses import replace

import pytest

from edge_agent.draft_model.drafter import NoDrafter
from edge_agent.engine import Speculation
from edge_agent.metrics import EdgeMetrics
from speculation.protocol.messages import Commit, Finish
from tests.edge_agent.engines import JOB, FakeUplink, OneSlot, deltas, engine
from tests.edge_agent.fakes import LIMITS, quiet, scripted

TEXT = "Call me Ishmael. Some years ago"
PREDICTED = replace(JOB, extras={"prediction": TEXT})


async def test_a_prediction_is_drafted_from_the_first_token_on_without_a_step(
    metrics: EdgeMetrics,
) -> None:
    uplink, drafter = FakeUplink(scripted(quiet, Finish("stop"))), OneSlot()

    await deltas(engine(uplink, metrics, drafter).generate(PREDICTED))

    assert bytes(uplink.link.drafted) == TEXT.encode()[: LIMITS.max_ahead]
    assert drafter.slot.contexts == []


async def test_the_verifier_never_hears_of_it(metrics: EdgeMetrics) -> None:
    uplink = FakeUplink(scripted(Finish("stop")))

    await deltas(engine(uplink, metrics).generate(PREDICTED))

    assert uplink.opened[0].sampling.extras == {}


@pytest.mark.parametrize("drafter", [OneSlot(), NoDrafter()])
async def test_what_became_of_it_is_told_with_every_delta(
    metrics: EdgeMetrics, drafter: OneSlot | NoDrafter
) -> None:
    right, wrong = tuple(TEXT[:8].encode()), (99, 98, 97)
    script = scripted(quiet, Commit(0, 0, right, 8), Commit(0, 8, wrong), Finish("stop"))

    told = await deltas(engine(FakeUplink(script), metrics, drafter).generate(PREDICTED))

    counted = [delta.statistics for delta in told if delta.statistics]
    assert [each.accepted_prediction_tokens for each in counted] == [8, 8, 8]
    assert counted[-1].rejected_prediction_tokens >= 8


@pytest.mark.parametrize(
    ("speculation", "text", "drafts_it"),
    [
        (Speculation(lookup=False), TEXT, True),
        (Speculation(judge="separate"), TEXT, False),
        (Speculation(), "", False),
    ],
)
async def test_only_coupled_judging_makes_use_of_it(
    metrics: EdgeMetrics, speculation: Speculation, text: str, drafts_it: bool
) -> None:
    uplink = FakeUplink(scripted(quiet, Finish("stop")))
    job = replace(JOB, extras={"prediction": text})

    await deltas(engine(uplink, metrics, NoDrafter(), speculation).generate(job))

    assert (len(uplink.link.drafted) > 0) is drafts_it
