"""The models that an edge serves: each has its verifiers, its engine and its draft model.

A model is what verifiers serve under one name. The edge learns the names from the verifiers'
facts, so a verifier that comes back with another model moves to that one. A verifier that has
never been reached counts to the first model.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import Final

import structlog

from edge_agent.draft.drafter import Drafter, NoDrafter
from edge_agent.draft.late import Drafts, LateDrafter, LoadedDraftModel
from edge_agent.draft.loading import (
    AUTO,
    NONE,
    FirstDraft,
    chosen_draft,
    pull_if_missing,
    wanted_draft,
)
from edge_agent.draft.open_tokenizers import OpenTokenizers
from edge_agent.draft.target_tokenizer import TargetTokenizer
from edge_agent.engine import EdgeEngine
from edge_agent.fallback import DraftFallback, ServerFallback, is_away, open_engine
from edge_agent.link.connection import Connection
from edge_agent.link.verifier import Verifier
from edge_agent.link.verifiers import Verifiers
from edge_agent.metrics import EdgeMetrics
from edge_agent.settings import EdgeSettings, ModelSettings, fallback_order
from gateway.background_work import kept_going, start
from gateway.endpoints.services import Backend, no_model
from gateway.errors import ApiError
from local_models.choosing import HubPolicy
from local_models.llama_cpp.library import has_llama
from local_models.store import Store
from local_models.tokenizer_cache import TokenizerCache

MAX_MODELS: Final = 64
"""An edge serves at most as many models; verifiers of further ones are not used."""

MAX_INTRODUCED: Final = 8
"""The tokenizers of as many models are read at the start; those of others when they are used,
by whoever may use them."""


def _by_itself(fallback: DraftFallback) -> Backend:
    """Return who answers for clients that ask for the draft model."""
    engine = fallback.alone
    return Backend(engine, fallback.tokenizer, engine.model, is_local=True)


@dataclass(eq=False)
class ServedModel:
    """A model with its verifiers, its engine and its draft model."""

    name: str
    """Empty until the first verifier was reached."""

    verifiers: Verifiers
    tokenizer: TargetTokenizer
    drafter: Drafter
    engine: EdgeEngine
    fallbacks: Sequence[ServerFallback | DraftFallback]
    aliases: Sequence[str]
    alone: Backend | None = field(init=False)
    """This answers for the draft model by itself, if that is one of the fallbacks."""

    _introducing: asyncio.Task[None] | None = None

    def __post_init__(self) -> None:
        drafts = (each for each in self.fallbacks if isinstance(each, DraftFallback))
        self.alone = next(map(_by_itself, drafts), None)
        self.tokenizer.forgotten = self._rest

    @property
    def adapters(self) -> set[str]:
        """The names of its adapters, which its verifiers choose."""
        return {name for verifier in self.verifiers.all for name in verifier.model.names}

    @property
    def may_answer(self) -> bool:
        """True if one of its verifiers is ready, or was never asked."""
        return any(v.is_ready or v.latest is None for v in self.verifiers.all)

    def introduce(self) -> None:
        """Begin to fetch the tokenizer, and to do what would hold up the first answer."""

        async def work() -> None:
            await self.tokenizer.introduce()
            with suppress(ApiError):  # another verifier is in use by now
                await self.engine.prepare()

        self._introducing = start(kept_going(work))

    def _rest(self) -> None:
        """Keep nothing that was made of a tokenizer, which was dropped."""
        if self._introducing is not None:
            self._introducing.cancel()
        self._introducing = start(self.engine.close())

    async def close(self) -> None:
        """Stop everything that the model has started."""
        if self._introducing is not None:
            self._introducing.cancel()
            await asyncio.wait([self._introducing])
        await self.engine.close()
        for fallback in self.fallbacks:
            await fallback.close()
        self.drafter.close()

    def about(self) -> dict[str, object]:
        """Return the part of /status that describes the model."""
        facts = self.verifiers.current.known
        return {
            "name": self.name,
            "state": "ready" if self.verifiers.is_ready else "away",
            "verifiers": [verifier.label for verifier in self.verifiers.all],
            "context_tokens": facts and facts.context_tokens,
            "draft": self.drafter.about() if isinstance(self.drafter, LateDrafter) else None,
        }


Make = Callable[[str, ModelSettings | None, Verifiers], ServedModel]
"""Makes a model of its name, of what the settings say of it, and of its verifiers."""


class ServedModels:
    """A gateway.endpoints.services.Models. whole: all verifiers. first: the name of the first
    model, if it is known."""

    def __init__(
        self, whole: Verifiers, settings: EdgeSettings, make: Make, first: str = ""
    ) -> None:
        self._whole = whole
        self._settings = settings
        self._make = make
        self._models: dict[str, ServedModel] = {}
        self._learning: asyncio.Future[list[object]] | None = None
        self._closing = set[asyncio.Task[None]]()
        self._runs = False
        for entry in settings.models:
            self._models[entry.name] = make(entry.name, entry, whole.part())
        if not self._models:
            self._models[first] = make(first, None, whole.part())
        whole.changed = self.sort
        self.sort()

    def sort(self) -> None:
        """Give each model the verifiers that serve it; make models for new names."""
        verifiers = self._whole.all
        names = dict.fromkeys(verifier.model.name for verifier in verifiers)
        self._forget({*names, *(entry.name for entry in self._settings.models)})
        for name in names:
            if name and name not in self._models:
                self._add(name)
        first = self.first.name
        for name, model in self._models.items():
            model.verifiers.use([v for v in verifiers if (v.model.name or first) == name])

    def _forget(self, names: Collection[str]) -> None:
        """Forget the models that have none of these names, but for the last one: verifiers
        that come with ever new names leave room for others."""
        for name in [name for name in self._models if name and name not in names]:
            if len(self._models) > 1:
                model = self._models.pop(name)
                model.verifiers.use([])
                closing = start(model.close())
                self._closing.add(closing)
                closing.add_done_callback(self._closing.discard)

    def _add(self, name: str) -> None:
        log = structlog.get_logger("edge_agent")
        if (unnamed := self._models.pop("", None)) is not None:
            unnamed.name = name
            self._models[name] = unnamed
        elif len(self._models) < MAX_MODELS:
            model = self._models[name] = self._make(name, None, self._whole.part())
            log.info("another model", model=name)
            if self._runs:
                model.introduce()
        else:
            log.warning("a model is not served", model=name, most=MAX_MODELS)

    @property
    def all(self) -> list[ServedModel]:
        """The models, in the order of their first verifiers. One that no verifier serves any
        more is none, unless the settings name it."""
        of_settings = [entry.name for entry in self._settings.models]
        of_verifiers = [verifier.model.name for verifier in self._whole.all]
        names = dict.fromkeys((*of_settings, *of_verifiers))
        models = [self._models[name] for name in names if name in self._models]
        return models or list(self._models.values())[:1]

    @property
    def first(self) -> ServedModel:
        """The model that is meant where none is named."""
        return self.all[0]

    def named(self, name: str | None) -> ServedModel | None:
        """Return the model with this name; the first one for None and for a name that stands
        for any. A model's own name goes before the aliases of the settings, and these before
        names of adapters: no verifier takes the requests for another model."""
        models, first = self.all, self.first
        if name is None:
            return first
        if (own := next((model for model in models if model.name == name), None)) is not None:
            return own
        if name in self._settings.model_aliases:
            return first
        by_alias = (model for model in models if name in model.aliases)
        by_adapter = (model for model in models if name in model.adapters)
        return next(chain(by_alias, by_adapter), None)

    def verifiers_of(self, name: str | None) -> Verifiers:
        """Return the verifiers of a model; those of the first one for None."""
        return (self.named(name) or self.first).verifiers

    @property
    def _alone(self) -> dict[str, Backend]:
        """Maps the names of draft models by themselves to who answers for them."""
        return {model.alone.name: model.alone for model in self.all if model.alone}

    async def find(self, name: str | None) -> Backend:
        if name is not None and (alone := self._alone.get(name)) is not None:
            return alone
        if (served := self.named(name)) is None or not served.verifiers.all:
            await self._learn(again=True)
            served = self.named(name)
        if served is None:
            models = self.all
            if len(models) > 1 and not self._settings.accept_any_model:
                raise no_model(name or "", [model.name for model in models])
            served = self.first
        return self._backend(served)

    async def reachable(self) -> Sequence[Backend]:
        await self._learn()
        return [*map(self._backend, self._up), *self._alone.values()]

    @property
    def away(self) -> Sequence[str]:
        up = self._up
        return [model.name for model in self.all if model not in up]

    @property
    def _up(self) -> list[ServedModel]:
        """The models that may answer; the first one if none may."""
        return [model for model in self.all if model.may_answer] or [self.first]

    def _backend(self, model: ServedModel) -> Backend:
        is_first = model is self.first
        aliases = (*model.aliases, *(self._settings.model_aliases if is_first else ()))
        return Backend(
            model.engine,
            model.tokenizer,
            model.name,
            aliases,
            takes_any_name=is_first and self._settings.accept_any_model,
            spares=model.fallbacks,
            is_away=partial(is_away, model.verifiers, model.tokenizer),
        )

    async def _learn(self, *, again: bool = False) -> None:
        """Ask the verifiers that were never reached for their facts. One task serves all
        callers. again: also those that did not answer when they were asked last."""

        async def learn(verifier: Verifier) -> None:
            if verifier.latest is not None:
                await verifier.check()  # fails sooner
            await verifier.facts()

        if self._learning is None or self._learning.done():
            unknown = [v for v in self._whole.all if not v.model.names]
            verifiers = [verifier for verifier in unknown if again or verifier.latest is None]
            if not verifiers or len(self._whole.all) == len(self._models) == 1:
                return
            self._learning = asyncio.gather(*map(learn, verifiers), return_exceptions=True)
        await asyncio.shield(self._learning)

    def start(self) -> None:
        """Begin to do what would hold up first answers."""
        self._runs = True
        for model in reversed(self.all[:MAX_INTRODUCED]):
            model.introduce()

    async def close(self) -> None:
        """Stop everything that the models have started."""
        if self._learning is not None:
            self._learning.cancel()
        await asyncio.gather(
            *self._closing, *(model.close() for model in self._models.values())
        )

    def report(self) -> dict[str, object]:
        """Return what /health and /ready say of the verifiers."""
        return self._whole.report(self.first.verifiers.current)

    async def about(self) -> dict[str, object]:
        """Return the part of /status that describes models and verifiers."""
        models, now_s = self.all, time.monotonic()
        current = {model.verifiers.current for model in models}
        return {
            "verifiers": await self._whole.statuses(current),
            "models": [model.about() for model in models],
            "placed": [placed.shown(now_s) for placed in self._whole.placed],
        }


class Maker:
    """Makes the models of one edge. first: the draft model that is loaded at the start. server:
    the connection to the server of the fallback."""

    def __init__(
        self,
        settings: EdgeSettings,
        store: Store,
        drafts: Drafts,
        metrics: EdgeMetrics,
        first: FirstDraft,
        server: Connection | None = None,
    ) -> None:
        self._settings = settings
        self._store = store
        self._drafts = drafts
        self._metrics = metrics
        self._first = first
        self._server = server
        self._cache = TokenizerCache(store.root / "tokenizers")
        self._open_tokenizers = OpenTokenizers()

    def __call__(
        self, name: str, entry: ModelSettings | None, verifiers: Verifiers
    ) -> ServedModel:
        """Return a model.

        Raises local_models.errors.ModelError, OSError if its fallback cannot be loaded.
        """
        settings, fallbacks = self._settings, list[ServerFallback | DraftFallback]()
        order = fallback_order((entry and entry.fallback) or settings.fallback)
        draft = self._draft(name, entry, pinned="draft" in order)
        encoder = draft.model if draft else None
        tokenizer = TargetTokenizer(verifiers, self._cache, encoder, self._open_tokenizers)
        drafter = self._drafter(name, entry, draft, tokenizer, verifiers)
        engine = EdgeEngine(verifiers, drafter, settings, self._metrics, tokenizer)
        if "server" in order and self._server is not None:
            of_server = settings.fallback_server.model
            fallbacks.append(ServerFallback(of_server, self._server, self._metrics))
        if "draft" in order and draft is not None:
            alone = open_engine(draft.stored, draft.drafter, draft.context_tokens)
            fallbacks.append(DraftFallback(alone, self._metrics))
        aliases = entry.aliases if entry else ()
        return ServedModel(name, verifiers, tokenizer, drafter, engine, fallbacks, aliases)

    def _wanted(self, name: str, entry: ModelSettings | None) -> str | None:
        """Return the name of a target's draft model; AUTO, if it is to be chosen; None for
        none."""
        wanted = wanted_draft(self._settings, entry)
        if wanted == AUTO and name and name == self._first.target:
            return self._first.name
        return None if wanted == NONE or not has_llama() else wanted

    def _draft(
        self, name: str, entry: ModelSettings | None, pinned: bool
    ) -> LoadedDraftModel | None:
        """Return a target's draft model if it is loaded; that of a fallback is in any case."""
        wanted = self._wanted(name, entry)
        if wanted is None or wanted == AUTO:
            return None
        if not pinned:
            return self._drafts.loaded(wanted) if wanted == self._first.name else None
        pull_if_missing(wanted, self._store)
        draft = self._drafts.open(wanted)
        draft.is_pinned = True
        return draft

    def _drafter(
        self,
        name: str,
        entry: ModelSettings | None,
        draft: LoadedDraftModel | None,
        tokenizer: TargetTokenizer,
        verifiers: Verifiers,
    ) -> Drafter:
        wanted = self._wanted(name, entry)
        if wanted is None:
            return NoDrafter()
        settings = self._settings

        async def choose() -> str | None:
            if wanted != AUTO:
                return wanted
            facts = await verifiers.facts()
            vocabulary = (await tokenizer(facts.vocabulary)).vocabulary
            consent = HubPolicy(settings.draft_from_hub, settings.draft_max_gb, lambda _: False)
            return await chosen_draft(facts.model, vocabulary, self._store, consent)

        drafter = LateDrafter(self._drafts, tokenizer, choose, time.monotonic)
        if draft is not None:
            drafter.begin(wanted, draft)
        return drafter
