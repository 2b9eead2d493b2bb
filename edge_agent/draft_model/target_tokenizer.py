"""The target's tokenizer at the edge, and how the draft model's vocabulary relates to it.

The verifier sends the tokenizer once; the edge caches it by its digest, and needs no file of
the target's family.
"""

from __future__ import annotations

import asyncio
from typing import Final

import structlog

from picospec.edge_agent.draft_model.foreign.translation import Translation
from picospec.edge_agent.link.uplink import Uplink
from picospec.edge_agent.link.verifiers import Verifiers
from picospec.gateway.errors import ApiError, EngineFault, Unavailable
from picospec.models.errors import CannotOpen
from picospec.models.tokenizer import Encoder, Tokenizer
from picospec.models.tokenizer_file import TokenizerCache
from picospec.models.vocabulary import Relation, relate

RETRY_S: Final = 2.0
"""A verifier that is away when the edge starts is tried again after this many seconds."""


class TargetTokenizer:
    """A gateway.tokenizer.TokenizerSource. draft: the draft model's encoder; None without
    one."""

    def __init__(
        self,
        verifiers: Verifiers | Uplink,
        cache: TokenizerCache,
        draft: Encoder | None,
    ) -> None:
        self._verifiers = verifiers
        self._cache = cache
        self._draft = draft
        self._digest = ""
        self._tokenizer: Tokenizer | None = None
        self._opening = asyncio.Lock()
        self.relation: Relation | None = None
        """None without a draft model, and before the verifier has been reached."""

        self.translation: Translation | None = None
        """Set if the draft model has another vocabulary, else None."""

    async def __call__(self, vocabulary: str = "") -> Tokenizer:
        """Return the tokenizer with this digest; empty means that of the verifier in use.

        Raises gateway.errors.Unavailable, also if another verifier is in use by now, or
        EngineFault for an unusable tokenizer.
        """
        facts = await self._verifiers.facts()
        digest = vocabulary or facts.vocabulary
        if digest != self._digest:
            async with self._opening:
                if digest != self._digest:
                    self._tokenizer = await self._open(digest)
                    self._digest = digest
        tokenizer: Tokenizer = self._tokenizer  # type: ignore[assignment]  # of that digest
        tokens = len(tokenizer.vocabulary.pieces)
        if digest == facts.vocabulary and tokens != facts.vocabulary_size:
            message = f"the verifier has {facts.vocabulary_size} tokens, its tokenizer {tokens}"
            raise EngineFault(message, code="bad_tokenizer")
        return tokenizer

    async def introduce(self) -> None:
        """Fetch the tokenizer as soon as the verifier can be reached; log why it cannot be
        used."""
        reason = ""
        while True:
            try:
                await self()
                return
            except EngineFault as error:
                if error.message != reason:
                    reason = error.message
                    structlog.get_logger("edge_agent").warning("tokenizer", reason=reason)
            except ApiError:
                pass
            await asyncio.sleep(RETRY_S)

    async def _open(self, digest: str) -> Tokenizer:
        try:
            tokenizer = await asyncio.to_thread(self._cache.find, digest)
            if tokenizer is None:
                if (await self._verifiers.facts()).vocabulary != digest:
                    raise Unavailable("the verifier is another one since the request began")
                packed = await self._verifiers.tokenizer()
                tokenizer = await asyncio.to_thread(self._cache.keep, digest, packed)
        except (CannotOpen, OSError) as error:
            message = f"the verifier's tokenizer: {error}"
            raise EngineFault(message, code="bad_tokenizer") from error
        if self._draft is not None:
            await asyncio.to_thread(self._relate, tokenizer, self._draft)
            structlog.get_logger("edge_agent").info("vocabularies", relation=self.relation)
        return tokenizer

    def _relate(self, tokenizer: Tokenizer, draft: Encoder) -> None:
        relation = relate(tokenizer.vocabulary, draft.vocabulary)
        self.translation = Translation(tokenizer, draft) if relation == "different" else None
        self.relation = relation
