"""Loads draft models when answers first need them, and frees the least used ones.

An edge may serve many models, each with a draft model of its own, and its memory may not hold
all of these. An answer that finds its draft model asleep begins at once, without drafts, and
drafts from when the model is there.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final, Literal

import structlog

from edge_agent.draft import loading
from edge_agent.draft.drafter import CannotDraft, DraftSlot, LoadedDrafter
from edge_agent.draft.target_tokenizer import TargetTokenizer
from edge_agent.settings import EdgeSettings
from gateway.background_work import kept_going, start
from gateway.turns import in_own_thread
from local_models.errors import NoRoom
from local_models.llama_cpp.context_length import Length, memory_bytes
from local_models.llama_cpp.devices import Placement
from local_models.llama_cpp.model import Model
from local_models.store import Store, StoredModel
from speculation.model_facts import TokenId

MEMORY_SHARE: Final = 2
"""All draft models take at most 1/MEMORY_SHARE of the memory, unless the settings say more."""

AGAIN_S: Final = 60.0
"""A draft model that cannot be loaded is tried again after this many seconds."""


@dataclass(slots=True)
class LoadedDraftModel:
    """A draft model in memory. size_bytes: with the KV of its slots. is_pinned: it is never
    freed, because a fallback needs it."""

    stored: StoredModel
    model: Model
    drafter: LoadedDrafter
    context_tokens: int
    size_bytes: int
    is_pinned: bool = False
    watching: asyncio.Task[None] | None = None
    freed: list[Callable[[], None]] = field(default_factory=list)
    """Called when the model is freed: nobody may refer to it then."""


class Drafts:
    """The draft models that are loaded. Targets that have the same one share it."""

    def __init__(
        self, settings: EdgeSettings, store: Store, clock: Callable[[], float] | None = None
    ) -> None:
        self._settings = settings
        self._store = store
        self._most_bytes = settings.draft_memory_bytes or memory_bytes() // MEMORY_SHARE
        self._loaded: OrderedDict[Path, LoadedDraftModel] = (
            OrderedDict()
        )  # the least recently used first
        self._opening = asyncio.Lock()
        self._read_before = 0
        self._clock = clock or time.monotonic
        self._again_at: dict[Path, float] = {}  # times from which freed ones may free others

    @property
    def read_tokens(self) -> int:
        """The number of prompt tokens that draft models have read, without reused ones."""
        return self._read_before + sum(d.drafter.read_tokens for d in self._loaded.values())

    @property
    def is_stuck(self) -> bool:
        return any(draft.drafter.is_stuck for draft in self._loaded.values())

    def loaded(self, name: str) -> LoadedDraftModel | None:
        """Return the draft model of this name, if it is loaded."""
        return self._loaded.get(self._store.find(name, "draft").path)

    def model_of(self, name: str | None) -> str | None:
        """Return the name of the draft model that a name means, which may be a pair's."""
        pair = self._store.catalogue.pairs.get(name or "")
        return pair.draft if pair else name

    def use(self, draft: LoadedDraftModel) -> None:
        """Note that an answer uses a draft model that is loaded."""
        self._loaded.move_to_end(draft.stored.path)

    def open(self, name: str) -> LoadedDraftModel:
        """Return a draft model that is on this machine, whatever memory it takes. Raises
        local_models.errors.ModelError, OSError."""
        stored = self._store.find(name, "draft")
        loaded = self._loaded.get(stored.path)
        return loaded or self._begin(stored, *self._opened(name, stored))

    async def load(self, name: str) -> LoadedDraftModel:
        """Return a draft model. Fetch it if it is missing, and free others that no answer uses
        if memory is short. Raises local_models.errors.ModelError, OSError."""
        pull = partial(loading.pull_if_missing, name, self._store)
        await in_own_thread(pull, "pull")
        stored = await asyncio.to_thread(self._store.find, name, "draft")
        async with self._opening:
            draft = self._loaded.get(stored.path) or await self._load(name, stored)
            self._watch(draft)
        return draft

    async def _load(self, name: str, stored: StoredModel) -> LoadedDraftModel:
        model, length = await in_own_thread(partial(self._opened, name, stored), "load")
        try:
            await self._make_room(stored.path, loading.footprint_of(model, length).model)
            return await in_own_thread(partial(self._begin, stored, model, length), "load")
        except BaseException:
            model.close()
            raise

    def _opened(self, name: str, stored: StoredModel) -> tuple[Model, Length]:
        """Return a model, and how long its slots are. Its context takes the memory later."""
        context_tokens = {
            each.draft_model: each.context_tokens for each in self._settings.models
        }
        tokens = context_tokens.get(name) or self._settings.context_tokens
        model = Model(stored.path, placement=Placement(self._settings.gpu_layers))
        return model, loading.length_of(model, self._settings, tokens)

    def _begin(self, stored: StoredModel, model: Model, length: Length) -> LoadedDraftModel:
        drafter = loading.make_drafter(model, self._settings, length)
        model.vocabulary  # noqa: B018 - it takes a while, and the event loop needs it
        size_bytes = loading.footprint_of(model, length).model
        draft = LoadedDraftModel(stored, model, drafter, length.tokens, size_bytes)
        self._loaded[stored.path] = draft
        return draft

    async def _make_room(self, path: Path, size_bytes: int) -> None:
        """Free draft models until there is room for one of this size. Raises NoRoom, also if it
        was freed itself a moment ago: two that do not fit together would free each other at
        each turn of their users."""
        while self._bytes + size_bytes > self._most_bytes:
            if self._clock() < self._again_at.get(path, 0.0):
                raise NoRoom(f"it was freed for another less than {AGAIN_S:g} s ago")
            free = (d for d in self._loaded.values() if d.drafter.is_idle and not d.is_pinned)
            if (draft := next(free, None)) is None:
                left = max(0, self._most_bytes - self._bytes)
                raise NoRoom(f"it needs {size_bytes >> 20} MiB, and {left >> 20} are left")
            await self._free(draft)
            self._again_at[draft.stored.path] = self._clock() + AGAIN_S

    @property
    def _bytes(self) -> int:
        return sum(draft.size_bytes for draft in self._loaded.values())

    async def _free(self, draft: LoadedDraftModel) -> None:
        del self._loaded[draft.stored.path]
        if draft.watching is not None:
            draft.watching.cancel()
        for forget in draft.freed:
            forget()
        log = structlog.get_logger("edge_agent")
        log.info("draft model freed", draft=draft.stored.name)
        if await asyncio.to_thread(draft.drafter.close):
            self._read_before += draft.drafter.read_tokens
            del draft.model  # a text may still be tokenised with it: the last user frees it

    def start(self) -> None:
        """Begin to watch the draft models that are loaded."""
        for draft in self._loaded.values():
            self._watch(draft)

    @staticmethod
    def _watch(draft: LoadedDraftModel) -> None:
        if draft.watching is None:
            draft.watching = start(kept_going(draft.drafter.watch))

    async def close(self) -> None:
        """Free everything."""
        for draft in list(self._loaded.values()):
            await self._free(draft)


State = Literal["asleep", "loading", "loaded", "failed"]


class LateDrafter:
    """The Drafter of one target. choose: returns the name of its draft model, None if it has
    none; called once."""

    def __init__(
        self,
        drafts: Drafts,
        tokenizer: TargetTokenizer,
        choose: Callable[[], Awaitable[str | None]],
        clock: Callable[[], float],
    ) -> None:
        self._drafts = drafts
        self._tokenizer = tokenizer
        self._choose = choose
        self._clock = clock
        self._loading: asyncio.Task[None] | None = None
        self._again_at = 0.0
        self._has_none = False
        self.draft: LoadedDraftModel | None = None
        """The draft model, while it is loaded and related to the target's vocabulary."""

        self.name: str | None = None
        """The name of the draft model, once it is known."""

    @property
    def model(self) -> str | None:
        """The draft model's own name, once it is known; `name` may be that of its pair."""
        return self.draft.stored.name if self.draft else self._drafts.model_of(self.name)

    def begin(self, name: str, draft: LoadedDraftModel) -> None:
        """Draft with a model that is loaded and that the tokenizer knows already."""
        self.name, self.draft = name, draft
        draft.freed.append(self._part)

    def _part(self) -> None:
        self.draft = None
        self._tokenizer.part()

    def about(self) -> dict[str, object] | None:
        """Return the part of /status that describes the draft model; None if none fits."""
        if self._has_none:
            return None
        size_bytes = self.draft.size_bytes if self.draft else 0
        return {"model": self.model, "state": self.state, "bytes": size_bytes}

    @property
    def state(self) -> State:
        if self.draft is not None:
            return "loaded"
        if self._loading is not None and not self._loading.done():
            return "loading"
        return "failed" if self._again_at > self._clock() else "asleep"

    @property
    def is_late(self) -> bool:
        return not self._has_none and self.state in ("asleep", "loading")

    async def wake(self) -> None:
        """Return when the draft model is loaded. Raises CannotDraft."""
        if self._loading is None or self._loading.done():
            self._loading = start(self._load())
        await asyncio.shield(self._loading)
        if self.draft is None:
            raise CannotDraft("there is no draft model")

    async def _load(self) -> None:
        """Load the draft model; if that fails, log why, and let it be tried again later."""
        try:
            self.name = self.name or await self._choose()
            if self.name is None:
                self._has_none = True
                return
            draft = await self._drafts.load(self.name)
            await self._tokenizer.pair(draft.model)
            self.begin(self.name, draft)
        except Exception as error:  # whatever it is, answers need no drafts
            self._again_at = self._clock() + AGAIN_S
            structlog.get_logger("edge_agent").warning(
                "no drafts", draft=self.name, reason=str(error), again_s=AGAIN_S
            )

    def take(
        self, prompt: Sequence[TokenId], owner: object = None, *, whole: bool = False
    ) -> DraftSlot | None:
        if (draft := self.draft) is None:
            return None
        self._drafts.use(draft)
        return draft.drafter.take(prompt, owner, whole=whole)

    def close(self) -> bool:
        """Load no more."""
        if self._loading is not None:
            self._loading.cancel()
        if self.draft is not None:  # which others may use
            self.draft.freed.remove(self._part)
        return True
