"""The client's prediction travels to the verifier, and what became of it is counted."""

from __future__ import annotations

from dataclasses import replace

import pytest

from picospec.edge_agent.draft_model.drafter import NoDrafter
from picospec.edge_agent.metrics import EdgeMetrics
from picospec.edge_agent.speculation import Speculation
from picospec.speculation.protocol.messages import Commit, Finish
from tests.edge_agent.engines import JOB, FakeUplink, OneSlot, deltas, engine
from tests.edge_agent.fakes import quiet, scripted

TEXT = "Call me Ishmael. Some years ago"
PREDICTED = replace(JOB, extras={"prediction": TEXT})


async def test_its_tokens_go_to_the_verifier_once_and_are_no_setting(
    metrics: EdgeMetrics,
) -> None:
    uplink = FakeUplink(scripted(quiet, Finish("stop")))

    await deltas(engine(uplink, metrics, OneSlot()).generate(PREDICTED))

    (opened,) = uplink.opened
    assert bytes(opened.predicted) == TEXT.encode()
    assert opened.own_drafts
    assert opened.sampling.extras == {}


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
    ("speculation", "text", "sent"),
    [
        (Speculation(lookup=False), TEXT, (True, TEXT)),
        (Speculation(), "", (True, "")),
        (Speculation(judge="separate"), TEXT, (False, "")),
        (Speculation(verifier_drafts=False), TEXT, (False, "")),
    ],
)
async def test_only_where_any_draft_token_is_exact_the_verifier_proposes_some(
    metrics: EdgeMetrics, speculation: Speculation, text: str, sent: tuple[bool, str]
) -> None:
    uplink = FakeUplink(scripted(quiet, Finish("stop")))
    job = replace(JOB, extras={"prediction": text})

    await deltas(engine(uplink, metrics, NoDrafter(), speculation).generate(job))

    (opened,) = uplink.opened
    assert (opened.own_drafts, bytes(opened.predicted).decode()) == sent
