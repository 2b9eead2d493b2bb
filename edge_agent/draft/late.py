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
from typing import Final, Literal

import structlog

from picospec.edge_agent.draft import loading
from picospec.edge_agent.draft.drafter import CannotDraft, Drafter, DraftSlot
from picospec.edge_agent.draft.loading import MakeDrafter, TargetTokenizer
from picospec.edge_agent.settings import EdgeSettings
from picospec.gateway.drain import kept_going
from picospec.gateway.errors import ApiError
from picospec.models.errors import ModelError, NoRoom
from picospec.models.llama_cpp.model import Model, memory_bytes
from picospec.models.store import Found, Store
from picospec.speculation.messages import TokenId

MEMORY_SHARE: Final = 2
"""All draft models take at most 1/MEMORY_SHARE of the memory, unless the settings say more."""

AGAIN_S: Final = 60.0
"""A draft model that cannot be loaded is tried again after this many seconds."""


@dataclass(slots=True)
class Draft:
    """A draft model in memory. settings: the edge's, with the length of the model's slots.
    is_pinned: it is never freed, because a fallback needs it."""

    found: Found
    model: Model
    drafter: Drafter
    settings: EdgeSettings
    size_bytes: int
    is_pinned: bool = False
    watching: asyncio.Task[None] | None = None
    freed: list[Callable[[], None]] = field(default_factory=list)
    """Called when the model is freed: nobody may refer to it then."""


class Drafts:
    """The draft models that are loaded, by name. Models of one draft model share it."""

    def __init__(
        self,
        settings: EdgeSettings,
        store: Store,
        make_drafter: MakeDrafter = loading.make_drafter,
    ) -> None:
        self._settings = settings
        self._store = store
        self._make_drafter = make_drafter
        self._most_bytes = settings.draft_memory_bytes or memory_bytes() // MEMORY_SHARE
        self._loaded: OrderedDict[str, Draft] = OrderedDict()  # the least recently used first
        self._opening = asyncio.Lock()
        self._read_before = 0

    @property
    def read_tokens(self) -> int:
        """The number of prompt tokens that draft models have read, without reused ones."""
        return self._read_before + sum(d.drafter.read_tokens for d in self._loaded.values())

    @property
    def is_stuck(self) -> bool:
        return any(draft.drafter.is_stuck for draft in self._loaded.values())

    def get(self, name: str) -> Draft | None:
        """Return the draft model of this name if it is loaded, and note its use."""
        if (draft := self._loaded.get(name)) is not None:
            self._loaded.move_to_end(name)
        return draft

    def open(self, name: str) -> Draft:
        """Load a draft model that is on this machine, whatever memory it takes. Raises
        models.errors.ModelError, OSError."""
        return self._begin(name, *self._opened(name))

    async def load(self, name: str) -> Draft:
        """Return the draft model of this name. Fetch it if it is missing, and free others that
        no answer uses if memory is short. Raises models.errors.ModelError, OSError."""
        if (draft := self.get(name)) is None:
            await asyncio.to_thread(loading.pull_if_missing, name, self._store)
            async with self._opening:
                draft = self.get(name) or await self._load(name)
                self._watch(draft)
        return draft

    async def _load(self, name: str) -> Draft:
        model, size_bytes = await asyncio.to_thread(self._opened, name)
        try:
            await self._make_room(size_bytes)
            return await asyncio.to_thread(self._begin, name, model, size_bytes)
        except BaseException:
            model.close()
            raise

    def _opened(self, name: str) -> tuple[Model, int]:
        """Return a model, and the bytes that it takes with the KV of its slots."""
        found = self._store.find(name, "draft")
        model = Model(found.path, gpu_layers=self._settings.gpu_layers)
        kv_bytes = loading.length_of(model, self._settings).kv_bytes
        return model, found.path.stat().st_size + kv_bytes

    def _begin(self, name: str, model: Model, size_bytes: int) -> Draft:
        tokens = loading.length_of(model, self._settings).tokens  # later less memory is free
        settings = self._settings.model_copy(update={"context_tokens": tokens})
        found = self._store.find(name, "draft")
        drafter = self._make_drafter(model, settings)
        model.vocabulary  # noqa: B018 - it takes a while, so not in the event loop
        draft = self._loaded[name] = Draft(found, model, drafter, settings, size_bytes)
        return draft

    async def _make_room(self, size_bytes: int) -> None:
        """Free draft models until there is room for one of this size. Raises NoRoom."""
        while self._bytes + size_bytes > self._most_bytes:
            idle = (n for n, d in self._loaded.items() if d.drafter.is_idle and not d.is_pinned)
            if (name := next(idle, None)) is None:
                free = max(0, self._most_bytes - self._bytes)
                raise NoRoom(f"it needs {size_bytes >> 20} MiB, and {free >> 20} are left")
            await self._free(name)

    @property
    def _bytes(self) -> int:
        return sum(draft.size_bytes for draft in self._loaded.values())

    async def _free(self, name: str) -> None:
        draft = self._loaded.pop(name)
        if draft.watching is not None:
            draft.watching.cancel()
        for forget in draft.freed:
            forget()
        structlog.get_logger("edge_agent").info("draft model freed", draft=name)
        if await asyncio.to_thread(draft.drafter.close):
            self._read_before += draft.drafter.read_tokens
            del draft.model  # a text may still be tokenised with it: the last user frees it

    def start(self) -> None:
        """Begin to watch the draft models that are loaded."""
        for draft in self._loaded.values():
            self._watch(draft)

    @staticmethod
    def _watch(draft: Draft) -> None:
        if draft.watching is None:
            draft.watching = asyncio.create_task(kept_going(draft.drafter.watch))

    async def close(self) -> None:
        """Free everything."""
        for name in list(self._loaded):
            await self._free(name)


State = Literal["asleep", "loading", "loaded", "failed"]


class LateDrafter:
    """The Drafter of one target. choose: returns the name of its draft model, None if it has
    none; called once."""

    def __init__(
        self,
        drafts: Drafts,
        tokenizer: TargetTokenizer,
        choose: Callable[[], Awaitable[str | None]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._drafts = drafts
        self._tokenizer = tokenizer
        self._choose = choose
        self._clock = clock
        self._loading: asyncio.Task[None] | None = None
        self._again_at = 0.0
        self._has_none = False
        self.name: str | None = None
        """The name of the draft model, once it is known."""

    def begin(self, name: str, draft: Draft) -> None:
        """Draft with a model that is loaded and that the tokenizer knows already."""
        self.name = name
        draft.freed.append(self._tokenizer.part)

    def about(self) -> dict[str, object]:
        """Return the part of /status that describes the draft model."""
        size_bytes = self.draft.size_bytes if self.draft else 0
        return {"model": self.name, "state": self.state, "bytes": size_bytes}

    @property
    def draft(self) -> Draft | None:
        """The draft model, if it is loaded and related to the target's vocabulary."""
        draft = self._drafts.get(self.name) if self.name else None
        return draft if draft and self._tokenizer.draft is draft.model else None

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
            self._loading = asyncio.create_task(self._load())
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
            draft.freed.append(self._tokenizer.part)
        except (ModelError, OSError, ApiError) as error:
            self._again_at = self._clock() + AGAIN_S
            structlog.get_logger("edge_agent").warning(
                "no drafts", draft=self.name, reason=str(error), again_s=AGAIN_S
            )

    def take(
        self, prompt: Sequence[TokenId], owner: object = None, *, whole: bool = False
    ) -> DraftSlot | None:
        draft = self.draft
        return None if draft is None else draft.drafter.take(prompt, owner, whole=whole)

    @property
    def read_tokens(self) -> int:
        return self._drafts.read_tokens

    @property
    def is_stuck(self) -> bool:
        return self.draft is not None and self.draft.drafter.is_stuck

    @property
    def is_idle(self) -> bool:
        return self.draft is None or self.draft.drafter.is_idle

    async def watch(self) -> None:
        """Do nothing: Drafts watches each draft model once."""

    def close(self) -> bool:
        """Load no more."""
        if self._loading is not None:
            self._loading.cancel()
        return True
