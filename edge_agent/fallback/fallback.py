"""When the draft model answers alone, and with what."""

from __future__ import annotations

from picospec.edge_agent.draft_model.drafter import Drafter
from picospec.edge_agent.fallback.draft_engine import FEATURES, DraftEngine
from picospec.edge_agent.link.verifiers import Verifiers
from picospec.edge_agent.metrics import EdgeMetrics
from picospec.gateway.errors import Unavailable
from picospec.gateway.tenants.turns import Turns
from picospec.gateway.tokenizer import TokenizerSource
from picospec.models.grammars.compiler import MAX_WAITING, WAITING, GrammarCompiler
from picospec.models.store import Found
from picospec.models.tokenizing.tokenizer import Tokenizer
from picospec.models.tokenizing.tokenizer_file import tokenizer_file
from picospec.speculation.protocol.messages import Limits, ModelFacts


class DraftFallback:
    """gateway.ports.Fallback. An answer is the draft model's from its first token to its last,
    or not at all: texts of two models are never joined.

    tokenizer: the draft model's. target: the target's.
    """

    name = "draft"

    def __init__(
        self,
        engine: DraftEngine,
        tokenizer: Tokenizer,
        verifiers: Verifiers,
        target: TokenizerSource,
        metrics: EdgeMetrics,
    ) -> None:
        self.engine = engine
        self._tokenizer = tokenizer
        self._verifiers = verifiers
        self._target = target
        self._metrics = metrics

    async def tokenizer(self, vocabulary: str) -> Tokenizer:
        return self._tokenizer

    async def is_needed(self) -> bool:
        """Ask the verifiers, which takes a round trip: what was known of them may be old.
        Raises what is wrong with one that can be reached."""
        try:
            await self._verifiers.check()
            facts = await self._verifiers.facts()
            await self._target(facts.vocabulary)
        except Unavailable:
            return True
        return False

    def count_answers(self, count: int) -> None:
        """Count answers that it begins."""
        self._metrics.fallback_answers.inc(count)


def open_engine(
    found: Found, drafter: Drafter, context_tokens: int
) -> tuple[DraftEngine, Tokenizer]:
    """Return the engine over a draft model, and that model's tokenizer. Raises CannotOpen.

    context_tokens: of a slot of the drafter's.
    """
    file = tokenizer_file(found.path)
    tokenizer = file.open()
    vocabulary = tokenizer.vocabulary
    facts = ModelFacts(
        model=found.name,
        vocabulary_size=len(vocabulary.pieces),
        vocabulary=file.digest,
        context_tokens=context_tokens,
        stop_tokens=sorted(vocabulary.stop_tokens),
        limits=Limits(),
        judges=["coupled"],
        features=list(FEATURES),
        defaults=file.defaults,
    )
    turns = Turns(1, MAX_WAITING, WAITING)
    return DraftEngine(facts, drafter, GrammarCompiler(tokenizer, turns.take)), tokenizer
