"""Finds, fetches and opens the draft model of this edge, and makes a drafter of it.

The settings name the model, or it is one that fits the target (local_models.choosing); a
missing one is fetched. The target decides which draft fits, so without a name the edge waits
for the verifier.
"""

from __future__ import annotations

import asyncio
import sys
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final
from weakref import WeakSet

import structlog
from rich.console import Console

from edge_agent.draft.drafter import LoadedDrafter
from edge_agent.draft.llama import LlamaDrafter
from edge_agent.draft.token_mapping import Translation
from edge_agent.link.verifier import Verifier
from edge_agent.link.verifiers import Verifiers
from edge_agent.settings import EdgeSettings, ModelSettings
from gateway.background_work import kept_going, running_alongside
from gateway.errors import ApiError, EngineFault, Unavailable
from gateway.hosting.cores import compute_threads
from gateway.turns import in_own_thread
from local_models.choosing import HubPolicy, choose_draft
from local_models.errors import CannotOpen
from local_models.llama_cpp.context_length import Length, context_length
from local_models.llama_cpp.library import INSTALL, can_use_gpu, check_llama, has_llama
from local_models.llama_cpp.model import Context, Model
from local_models.progress import progress_bar
from local_models.store import Store, obtain
from local_models.tokenizer import Encoder, Tokenizer
from local_models.tokenizer_cache import TokenizerCache
from local_models.vocabulary import Relation, Vocabulary, relate

# The target's tokenizer at the edge, and how the draft model's vocabulary relates to it.
#
# The verifier sends the tokenizer once; the edge caches it by its digest, and needs no file of
# the target's family.

RETRY_S: Final = 2.0
"""A verifier that is away when the edge starts is tried again after this many seconds."""

RETRY_MOST_S: Final = 60.0
"""A tokenizer that cannot be used is tried again after twice as long each time, up to this."""


MAX_OPEN_BYTES: Final = 1 << 30
"""The tokenizers in memory together, with what grammars make of them, take about this much."""

TOKEN_BYTES: Final = 400
"""A token takes about so much memory: its bytes, and its place in two tries."""


class OpenTokenizers:
    """The tokenizers in memory, by digest: those used last, in most_bytes together, and the
    last one whatever it takes. They are shared by all models."""

    def __init__(self, most_bytes: int = MAX_OPEN_BYTES) -> None:
        self._most_bytes = most_bytes
        self._open: OrderedDict[str, tuple[Tokenizer, int]] = OrderedDict()
        self.users: WeakSet[TargetTokenizer] = WeakSet()
        """They let go of a tokenizer that is dropped."""

    def get(self, digest: str) -> Tokenizer | None:
        """Return a tokenizer, which counts as used now; None if it is not in memory."""
        if digest not in self._open:
            return None
        self._open.move_to_end(digest)
        return self._open[digest][0]

    def add(self, digest: str, tokenizer: Tokenizer) -> None:
        """Keep a tokenizer, and drop those not used for longest."""
        self._open[digest] = tokenizer, len(tokenizer.vocabulary.pieces) * TOKEN_BYTES
        while len(self._open) > 1 and self._bytes > self._most_bytes:
            dropped, _ = self._open.popitem(last=False)
            for user in [user for user in self.users if user.digest == dropped]:
                user.forget()

    @property
    def _bytes(self) -> int:
        return sum(size for _, size in self._open.values())


class TargetTokenizer:
    """A gateway.ports.TokenizerSource. draft: the draft model's encoder; None without
    one. open_ones: where tokenizers are kept in memory."""

    def __init__(
        self,
        verifiers: Verifiers | Verifier,
        cache: TokenizerCache,
        draft: Encoder | None,
        open_ones: OpenTokenizers | None = None,
    ) -> None:
        self._verifiers = verifiers
        self._cache = cache
        self._open_ones = open_ones or OpenTokenizers()
        self._open_ones.users.add(self)
        self.draft = draft
        self.digest = ""
        """Of the tokenizer that was used last, while it is in memory."""

        self.forgotten: Callable[[], None] = lambda: None
        """Called when that is dropped: nobody may keep it then."""

        self._tokenizer: Tokenizer | None = None
        self._opening = asyncio.Lock()
        self.relation: Relation | None = None
        """None without a draft model, and before the verifier has been reached."""

        self.translation: Translation | None = None
        """Set if the draft model has another vocabulary, else None."""

    @property
    def draft_tokens(self) -> int:
        """The size of the draft model's vocabulary; 0 without a draft model."""
        return len(self.draft.vocabulary.pieces) if self.draft else 0

    async def pair(self, draft: Encoder) -> None:
        """Relate another draft model to the target. Raises CannotOpen."""
        async with self._opening:
            if (tokenizer := self._tokenizer) is not None:
                await self._relate(tokenizer, draft)
            self.draft = draft

    def forget(self) -> None:
        """Keep no tokenizer in memory: it is read from its file when it is needed."""
        self.digest, self._tokenizer = "", None
        self.relation = self.translation = None
        self.forgotten()

    def part(self) -> None:
        """Forget the draft model: it was freed."""
        self.draft = self.relation = self.translation = None

    async def __call__(self, vocabulary: str = "") -> Tokenizer:
        """Return the tokenizer with this digest; empty means that of the verifier in use.

        Raises gateway.errors.Unavailable, also if another verifier is in use by now, or
        EngineFault for an unusable tokenizer.
        """
        facts = await self._verifiers.facts()
        digest = vocabulary or facts.vocabulary
        if digest != self.digest:
            async with self._opening:
                if digest != self.digest:
                    self._tokenizer = await self._open(digest)
                    self.digest = digest
                    self._open_ones.add(digest, self._tokenizer)
        self._open_ones.get(digest)
        tokenizer = self._tokenizer
        if tokenizer is None:  # forgotten meanwhile
            raise Unavailable("the tokenizer is in use no more; try again")
        tokens = len(tokenizer.vocabulary.pieces)
        if digest == facts.vocabulary and tokens != facts.vocabulary_size:
            message = f"the verifier has {facts.vocabulary_size} tokens, its tokenizer {tokens}"
            raise EngineFault(message, code="bad_tokenizer")
        return tokenizer

    async def introduce(self) -> None:
        """Fetch the tokenizer as soon as the verifier can be reached; log why it cannot be
        used."""
        reason, wait_s = "", RETRY_S
        while True:
            try:
                await self()
                return
            except EngineFault as error:  # the same tokenizer would fail again
                wait_s = min(2 * wait_s, RETRY_MOST_S)
                if error.message != reason:
                    reason = error.message
                    structlog.get_logger("edge_agent").warning("tokenizer", reason=reason)
            except ApiError:
                wait_s = RETRY_S
            await asyncio.sleep(wait_s)

    async def _open(self, digest: str) -> Tokenizer:
        try:
            tokenizer = self._open_ones.get(digest)
            if tokenizer is None:
                find = partial(self._cache.find, digest)
                tokenizer = await in_own_thread(find, "tokenizer")
            if tokenizer is None:
                if (await self._verifiers.facts()).vocabulary != digest:
                    raise Unavailable("the verifier is another one since the request began")
                packed = await self._verifiers.tokenizer()
                keep = partial(self._cache.keep, digest, packed)
                tokenizer = await in_own_thread(keep, "tokenizer")
        except (CannotOpen, OSError) as error:
            message = f"the verifier's tokenizer: {error}"
            raise EngineFault(message, code="bad_tokenizer") from error
        if self.draft is not None:
            await self._relate(tokenizer, self.draft)
        return tokenizer

    async def _relate(self, tokenizer: Tokenizer, draft: Encoder) -> None:
        def related() -> tuple[Relation, Translation | None]:
            relation = relate(tokenizer.vocabulary, draft.vocabulary)
            differs = relation == "different"
            return relation, Translation(tokenizer, draft) if differs else None

        self.relation, self.translation = await asyncio.to_thread(related)
        structlog.get_logger("edge_agent").info("vocabularies", relation=self.relation)


AUTO: Final = "auto"
NONE: Final = "none"
"""Values of the setting draft_model that name no model."""

MIN_TOKENS: Final = 8192
"""A slot holds this many tokens on the smallest machine, if the draft model allows it."""

CHECKPOINTS: Final = 9
"""A draft model with recurrent layers keeps so many copies of their states in each slot. They
reach back by 32 tokens, as many as an edge drafts ahead."""


def find(reference: str, store: Store) -> Path:
    """Return the path of the draft model's file; local_models.references describes references.

    Raises local_models.errors.UnknownModel or NotPulled.
    """
    return store.find(reference, "draft").path


def pull_if_missing(name: str, store: Store) -> None:
    """Fetch a missing draft model and show the progress.

    Raises local_models.errors.ModelError.
    """
    check_llama()
    with progress_bar(Console(stderr=True), name) as show:
        obtain(store, name, "draft", show)


@dataclass(frozen=True, slots=True)
class FirstDraft:
    """The draft model that an edge starts with; the others are loaded when they are needed.

    name: of one on this machine; None for none. target: it was chosen for the target of this
    name; empty if the settings name it, and so for all targets."""

    name: str | None = None
    target: str = ""


def wanted_draft(settings: EdgeSettings, model: ModelSettings | None) -> str:
    """Return the setting for a model's draft model: a name, AUTO or NONE. model: what the
    settings say of that model, if anything."""
    if settings.drafter == "none":
        return NONE
    return (model and model.draft_model) or settings.draft_model


def _wanted_first(settings: EdgeSettings) -> str:
    return wanted_draft(settings, next(iter(settings.models), None))


def named_draft(settings: EdgeSettings) -> FirstDraft:
    """Return the draft model that the settings name for the first model, if they do."""
    wanted = _wanted_first(settings)
    return FirstDraft(None if wanted in (AUTO, NONE) else wanted)


def first_draft(
    settings: EdgeSettings, store: Store, connect: Callable[[], Verifiers]
) -> FirstDraft:
    """Return the draft model that the settings name, or one that fits the verifier's target.
    It is fetched if it is missing.

    connect: returns the verifiers, which are closed again.
    Raises local_models.errors.ModelError, OSError.
    """
    first = named_draft(settings)
    if _wanted_first(settings) == AUTO and has_llama():
        first = asyncio.run(_fitting(connect(), store, settings))
    elif _wanted_first(settings) == AUTO:
        log = structlog.get_logger("edge_agent")
        log.warning("no draft model", reason="llama.cpp is not installed", remedy=INSTALL)
    if first.name is not None:
        pull_if_missing(first.name, store)
    return first


async def _fitting(verifiers: Verifiers, store: Store, settings: EdgeSettings) -> FirstDraft:
    """Wait for the verifier; return a draft that fits the target, if one does."""
    tokenizer = TargetTokenizer(verifiers, TokenizerCache(store.root / "tokenizers"), None)
    try:
        async with running_alongside(kept_going(verifiers.watch)):
            target, vocabulary = await _target(verifiers, tokenizer)
    finally:
        await verifiers.close()
    policy = HubPolicy(settings.draft_from_hub, settings.draft_max_gb)
    return FirstDraft(await chosen_draft(target, vocabulary, store, policy), target)


async def chosen_draft(
    target: str, vocabulary: Vocabulary, store: Store, policy: HubPolicy
) -> str | None:
    """Return the name of a draft model that fits a target, if one does; log why."""
    choose = partial(choose_draft, store, target, vocabulary, policy)
    choice = await in_own_thread(choose, "choice")
    more = {"remedy": f'{choice.remedy}, or draft_from_hub = "always"'} if choice.remedy else {}
    structlog.get_logger("edge_agent").info(
        "draft model", target=target, chosen=choice.name or "none", why=choice.why, **more
    )
    return choice.name


async def _target(verifiers: Verifiers, tokenizer: TargetTokenizer) -> tuple[str, Vocabulary]:
    """Wait for the verifier; return the target's name and vocabulary."""
    log, reason = structlog.get_logger("edge_agent"), ""
    while True:
        try:
            return (await verifiers.facts()).model, (await tokenizer()).vocabulary
        except ApiError as error:
            if str(error) != reason:
                reason = str(error)
                log.info("the draft model depends on the verifier; waiting", reason=reason)
            await asyncio.sleep(RETRY_S)


def make_drafter(model: Model, settings: EdgeSettings, length: Length) -> LoadedDrafter:
    """Return the drafter.

    Raises local_models.errors.CannotOpen if there is not enough memory.
    """
    structlog.get_logger("edge_agent").info("context", **length.log_fields())
    return LlamaDrafter(
        open_context(model, settings, length.tokens, length.sequences),
        share_prefixes=settings.share_prefixes,
    )


def open_context(
    model: Model, settings: EdgeSettings, tokens: int, sequences: int = 1
) -> Context:
    """Return a KV cache of the draft model with the edge's settings. Raises
    local_models.errors.CannotOpen.

    One core is left to the event loop, which would interrupt a thread that all others wait for.
    """
    return Context(
        model,
        tokens,
        sequences=sequences,
        threads=settings.threads or max(1, compute_threads() - 1),
        flash_attention=settings.gpu_layers != 0,
        checkpoints=CHECKPOINTS,
    )


def length_of(model: Model, settings: EdgeSettings, context_tokens: int | None) -> Length:
    """Return how many tokens a slot of the draft model holds: those that are asked for, or as
    many as fit. A GPU with its own memory does not report how much of it is free."""
    facts = model.metadata()
    if (
        context_tokens is None
        and settings.gpu_layers
        and sys.platform != "darwin"
        and can_use_gpu()
    ):
        context_tokens = MIN_TOKENS
    return context_length(
        facts,
        model.context_tokens,
        context_tokens,
        sequences=settings.slots + 1,  # one spare sequence, to read on in
        cache="F16",
        min_tokens=MIN_TOKENS,
        rollback=CHECKPOINTS,
    )
