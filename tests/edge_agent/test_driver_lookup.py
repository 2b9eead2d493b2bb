"""Where text is repeated, tokens are drafted without a step of the draft model."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence

from picospec.edge_agent.draft_model.drafter import CannotDraft
from picospec.edge_agent.metrics import EdgeMetrics
from picospec.speculation.protocol.messages import Commit, Down, Draft, Finish, Opened, TokenId
from tests.edge_agent.driven import Edge
from tests.edge_agent.fakes import LIMITS, CountingSlot, ScriptedLink, quiet, scripted, sent

COPIED = tuple(range(100, 140))


def copying(pass_s: float) -> ScriptedLink:
    """Return the link of a target that repeats COPIED, its first half at once in one pass."""
    return ScriptedLink(
        scripted(
            sent(2),
            Commit(0, 0, COPIED[:1], pass_s=1.0),  # with the prompt: not learned
            Commit(0, 1, COPIED[1:20], pass_s=pass_s),
            sent(18),
            Finish("stop"),
        )
    )


async def test_without_a_slot_it_drafts_what_followed_before(metrics: EdgeMetrics) -> None:
    script = scripted(
        quiet,
        Commit(0, 0, (9, 1, 2, 3)),  # as in the prompt
        sent(3),
        Commit(0, 4, (4, 5, 6, 9, 9), accepted=3),
        Finish("stop"),
    )
    link = ScriptedLink(script)
    edge = Edge(metrics, link, prompt=(1, 2, 3, 4, 5, 6, 7), lookup=True)

    await edge.run()

    first = link.sent[0]
    assert isinstance(first, Draft)
    assert (first.start, first.tokens[:4]) == (4, (4, 5, 6, 7))
    assert edge.emitted == [9, 1, 2, 3, 4, 5, 6, 9, 9]
    counts = edge.machine.counts
    assert (counts.drafted, counts.looked_up) == (0, len(link.drafted))


async def test_a_wrong_lookup_breaks_the_chain_like_any_draft_token(
    metrics: EdgeMetrics,
) -> None:
    async def correcting(link: ScriptedLink) -> AsyncGenerator[Down]:
        yield Opened("s", LIMITS)
        yield Commit(0, 0, (1, 2, 3))
        await link.until_sent(4)
        yield Commit(0, 3, (4, 88, 5, 6, 7))
        await link.until_sent(len(link.drafted) + 1)
        yield Finish("stop")

    link = ScriptedLink(correcting)
    edge = Edge(metrics, link, prompt=(1, 2, 3, 4, 5, 6, 7, 8), lookup=True)

    await edge.run()

    second = next(m for m in link.sent if m.epoch == 1)
    assert isinstance(second, Draft)
    assert (second.start, second.behind, second.tokens[0]) == (8, 0, 8)


async def test_where_steps_are_the_limit_it_looks_up_and_the_draft_model_goes_on_from_there(
    metrics: EdgeMetrics,
) -> None:
    link = copying(pass_s=1e-4)
    slot = CountingSlot(wait=lambda _: asyncio.sleep(0.01))
    edge = Edge(metrics, link, slot, prompt=COPIED, lookup=True, max_tokens=99)

    await edge.run()

    assert edge.machine.counts.looked_up == 16
    assert [drafted.token for drafted in edge.machine.session.chain[:16]] == list(COPIED[20:36])


async def test_what_followed_before_is_read_in_the_step_that_drafts(
    metrics: EdgeMetrics,
) -> None:
    prompt = (*range(8, 16), 1, 2)  # as long as the repeated text begins
    link = ScriptedLink(scripted(sent(9), Finish("stop")))
    slot = CountingSlot(wait=lambda _: asyncio.sleep(0.001))
    edge = Edge(metrics, link, slot, prompt=prompt, lookup=True)

    await edge.run()

    assert max(map(len, slot.contexts)) > len(prompt) + len(slot.contexts)
    assert edge.machine.counts.drafted > len(slot.contexts)


async def test_a_draft_model_fast_enough_for_the_passes_is_not_passed_over(
    metrics: EdgeMetrics,
) -> None:
    link = copying(pass_s=10.0)
    edge = Edge(metrics, link, CountingSlot(), prompt=COPIED, lookup=True)

    await edge.run()

    assert edge.machine.counts.looked_up == 0


async def test_past_the_draft_models_room_and_after_its_failure_it_looks_up_alone(
    metrics: EdgeMetrics,
) -> None:
    async def fail(context: Sequence[TokenId]) -> None:
        raise CannotDraft("no memory")

    script = scripted(Commit(0, 0, (1, 2, 3)), sent(3), Finish("stop"))
    full, failing = ScriptedLink(script), ScriptedLink(script)
    prompt = (1, 2, 3, 4, 5, 6, 7)
    slots = CountingSlot(context_tokens=7), CountingSlot(wait=fail)
    for link, slot in zip((full, failing), slots, strict=True):
        await Edge(metrics, link, slot, prompt=prompt, lookup=True).run()

    assert full.drafted[:3] == failing.drafted[:3] == [4, 5, 6]
