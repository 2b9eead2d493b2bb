"""The edge fetches and caches the target's tokenizer, and relates the draft model's vocabulary
to it.

The verifier sends the tokenizer once; the edge caches it by its digest, and needs no file of
the target's family.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Final

import structlog

from edge_agent.draft.open_tokenizers import OpenTokenizers
from edge_agent.draft.token_mapping import Translation
from edge_agent.link.verifier import Verifier
from edge_agent.link.verifiers import Verifiers
from gateway.errors import ApiError, EngineFault, Unavailable
from gateway.turns import in_own_thread
from local_models.errors import CannotOpen
from local_models.tokenizer import Encoder, Tokenizer
from local_models.tokenizer_cache import TokenizerCache
from local_models.vocabulary import Relation, relate

RETRY_S: Final = 2.0
"""A verifier that is away when the edge starts is tried again after this many seconds."""

RETRY_MOST_S: Final = 60.0
"""A tokenizer that cannot be used is tried again after twice as long each time, up to this."""


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
        """This is the digest of the tokenizer that was used last, while it is in memory."""

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
