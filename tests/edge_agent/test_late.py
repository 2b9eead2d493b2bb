"""Draft models are loaded when answers need them, and freed when none does."""

from __future__ import annotations

import asyncio
import os
import weakref
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from structlog.testing import capture_logs

from edge_agent.draft import loading
from edge_agent.draft.drafter import CannotDraft
from edge_agent.draft.late import AGAIN_S, Drafts, LateDrafter
from edge_agent.settings import EdgeSettings, load
from local_models.errors import NoRoom
from local_models.store import open_store
from speculation.messages import Commit, Finish
from tests.edge_agent.fakes import (
    JOB,
    FakeVerifiers,
    OneSlot,
    ScriptedLink,
    deltas,
    engine,
    quiet,
    scripted,
)

SMALL, LARGE = "smollm2-135m-q4_0", "smollm2-135m-q8_0"


class Late(OneSlot):
    """A Drafter that is not there before `comes` is set. fails: it never comes."""

    def __init__(self, *, fails: bool = False) -> None:
        super().__init__()
        self.is_late = True
        self.comes = asyncio.Event()
        self._fails = fails

    async def wake(self) -> None:
        await self.comes.wait()
        if self._fails:
            raise CannotDraft("it cannot be loaded")
        self.is_late = False


@pytest.mark.parametrize("fails", [False, True])
async def test_an_answer_begins_without_its_draft_model_and_drafts_once_it_is_there(
    fails: bool,
) -> None:
    drafter, before = Late(fails=fails), list[int]()

    async def comes(link: ScriptedLink) -> None:
        before.append(len(drafter.slot.contexts))
        drafter.comes.set()

    first, rest = Commit(0, 0, (3,)), Commit(0, 1, (4,))
    script = scripted(first, quiet, comes, quiet, rest, Finish("stop"))
    received = await deltas(engine(FakeVerifiers(script), drafter=drafter).generate(JOB))

    assert [token for delta in received for token in delta.tokens] == [3, 4]
    assert before == [0]
    assert (len(drafter.slot.contexts) > 0, drafter.slot.left) == (not fails, not fails)


class Loading:
    """Drafts whose models take a while to load, or fail with an error."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = [*errors]
        self.names: list[str] = []

    async def load(self, name: str) -> object:
        self.names.append(name)
        await asyncio.sleep(0)
        if self.errors:
            raise self.errors.pop()
        drafter = OneSlot()
        return SimpleNamespace(model=object(), drafter=drafter, freed=[], size_bytes=7)

    def use(self, draft: object) -> None:
        """Note nothing."""


class Source:
    """A TargetTokenizer's part in it."""

    draft: object = None

    async def pair(self, draft: object) -> None:
        self.draft = draft

    def part(self) -> None:
        self.draft = None


def late(
    drafts: Loading, chosen: str | None = "small", now: Callable[[], float] = float
) -> LateDrafter:
    async def choose() -> str | None:
        return chosen

    given: Any = drafts
    source: Any = Source()
    return LateDrafter(given, source, choose, now)


async def test_one_load_serves_all_answers_that_wait_for_it() -> None:
    drafts = Loading()
    drafter = late(drafts)

    assert (drafter.is_late, drafter.state, drafter.take((1,))) == (True, "asleep", None)
    await asyncio.gather(drafter.wake(), drafter.wake())
    assert (drafter.is_late, drafter.state, drafts.names) == (False, "loaded", ["small"])
    assert drafter.take((1,)) is not None


async def test_a_model_that_cannot_be_loaded_is_tried_again_after_a_while() -> None:
    now, drafts = [0.0], Loading(ValueError("no"), NoRoom("full"))
    drafter = late(drafts, now=lambda: now[0])

    for reason in ("full", "no"):
        with capture_logs() as logs, pytest.raises(CannotDraft):
            await drafter.wake()
        assert [(each["event"], each["reason"]) for each in logs] == [("no drafts", reason)]
        assert (drafter.is_late, drafter.state) == (False, "failed")
        now[0] += AGAIN_S
        assert (drafter.is_late, drafter.state) == (True, "asleep")
    await drafter.wake()
    assert drafter.state == "loaded"


async def test_a_target_that_no_draft_model_fits_is_asked_once() -> None:
    drafter = late(Loading(), None)

    with pytest.raises(CannotDraft):
        await drafter.wake()
    assert not drafter.is_late


@pytest.mark.models
async def test_the_model_that_was_not_used_for_longest_goes_but_none_that_is_used() -> None:
    store = open_store(os.environ)
    for name in (SMALL, LARGE):
        loading.pull_if_missing(name, store)
    settings = load(None, {}, {"context_tokens": 64, "slots": 1, "draft_memory_bytes": ROOM})
    now = [0.0]
    drafts = Drafts(settings, store, clock=lambda: now[0])
    parted = list[str]()

    first = await drafts.load(SMALL)
    first.freed.append(lambda: parted.append(SMALL))
    slot = first.drafter.take((1, 2, 3))
    with pytest.raises(NoRoom, match="it needs"):
        await drafts.load(LARGE)
    assert drafts.loaded(SMALL) is first
    assert slot is not None
    slot.leave()
    size_bytes, model = first.size_bytes, weakref.ref(first.model)
    del first, slot
    second = await drafts.load(LARGE)
    assert model() is None  # its memory is free
    assert (drafts.loaded(SMALL), parted, await drafts.load(LARGE)) == (None, [SMALL], second)
    with pytest.raises(NoRoom, match="freed for another"):  # or they would take turns
        await drafts.load(SMALL)
    now[0] = AGAIN_S
    assert (await drafts.load(SMALL)).size_bytes == size_bytes
    assert drafts.loaded(LARGE) is None
    await drafts.close()


ROOM = 256 << 20
"""Room for either of both, and not for both."""


def test_a_draft_model_that_a_pair_names_is_shown_by_its_own_name(tmp_path: Path) -> None:
    store = open_store({"PICOSPEC_CACHE": str(tmp_path)})
    drafter = late(Drafts(EdgeSettings(), store))  # type: ignore[arg-type]

    drafter.name = "smollm2"

    assert (drafter.about() or {})["model"] == "smollm2-135m-q4_0"
