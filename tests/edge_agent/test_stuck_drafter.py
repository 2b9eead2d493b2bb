"""A draft model whose pass does not end costs its sessions only their drafts."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from structlog.testing import capture_logs

from edge_agent.draft import llama
from edge_agent.draft.drafter import CannotDraft, DraftSlot
from edge_agent.draft.llama import LlamaDrafter
from gateway.background_work import running_alongside
from tests.edge_agent.fake_cache import FakeCache, draft_after, taken, truth


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llama, "PASS_TIMEOUT_S", 0.05)
    monkeypatch.setattr(llama, "CHECK_S", 0.01)
    monkeypatch.setattr(llama, "CLOSE_S", 0.05)


@asynccontextmanager
async def watched(drafter: LlamaDrafter) -> AsyncIterator[tuple[DraftSlot, DraftSlot]]:
    """Give two slots."""
    async with asyncio.timeout(5), running_alongside(drafter.watch()):
        yield taken(drafter, [1, 2, 3]), taken(drafter, [4, 5])


async def test_the_steps_that_wait_fail_and_that_is_logged(
    drafter: LlamaDrafter, cache: FakeCache
) -> None:
    cache.gate.clear()
    with capture_logs() as logs:
        async with watched(drafter) as (first, second):
            in_the_pass = asyncio.create_task(draft_after(first, [1, 2, 3]))
            await asyncio.sleep(0.02)
            behind_it = asyncio.create_task(draft_after(second, [4, 5]))
            failed = await asyncio.gather(in_the_pass, behind_it, return_exceptions=True)

            assert drafter.is_stuck
            assert drafter.take([6]) is None

    assert [type(error) for error in failed] == [CannotDraft, CannotDraft]
    assert [entry["event"] for entry in logs] == ["the draft model is stuck"]


@pytest.mark.parametrize("broken", ["next_slot", "truncate"])
async def test_an_error_of_its_own_costs_no_more_than_the_drafts(
    drafter: LlamaDrafter, cache: FakeCache, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(threading, "excepthook", lambda _: cache.gate.hold())
    async with watched(drafter) as (first, second):
        with monkeypatch.context() as during:
            during.setattr(drafter._reading_on, "next_slot", fails)
            if broken == "truncate":  # while it fails the step: its thread ends
                during.setattr(cache, "truncate", fails)
            with pytest.raises(CannotDraft):
                await draft_after(first, [1, 2, 3])

        assert drafter.is_stuck == (broken == "truncate")
        if not drafter.is_stuck:
            assert await draft_after(second, [4, 5]) == truth([4, 5])


async def test_a_pass_that_ends_after_all_lets_it_draft_again(
    drafter: LlamaDrafter, cache: FakeCache
) -> None:
    cache.gate.clear()
    async with watched(drafter) as (first, second):
        with pytest.raises(CannotDraft):
            await draft_after(first, [1, 2, 3])
        first.leave()

        cache.gate.set()
        assert await draft_after(second, [4, 5]) == truth([4, 5])

        slot = drafter.take([1, 2, 3])
        assert await draft_after(slot, [1, 2, 3]) == truth([1, 2, 3])


async def test_closing_does_not_wait_for_it_and_frees_nothing_that_it_uses(
    drafter: LlamaDrafter, cache: FakeCache
) -> None:
    cache.gate.clear()
    async with watched(drafter) as (first, _):
        step = asyncio.create_task(draft_after(first, [1, 2, 3]))
        await asyncio.sleep(0.02)

        assert drafter.close() is False

        assert not cache.closed
        step.cancel()
