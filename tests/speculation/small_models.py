"""Small models have few tokens; `plain` is the text that one of them generates alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from math import inf
from random import Random
from typing import Any

import numpy as np
from hypothesis import strategies as st
from scipy import stats

from speculation.distributions import Distribution, distribution, quantise
from speculation.draft_machine import DraftMachine
from speculation.draft_policy import StreamPolicy
from speculation.draft_token import DraftToken
from speculation.drafting import DraftingSession
from speculation.messages import Down, Open, Sampling
from speculation.model_facts import Limits, TokenId
from speculation.ngrams import LENGTHS, Match
from speculation.noise import noise_index
from speculation.separate import SeparateEdge
from speculation.verify_session import VerifyingSession

Model = Callable[[tuple[TokenId, ...]], Distribution]
"""Context to distribution."""

SIZE = 7
STOP = 6
PROMPT = (3, 1, 2)
ALMOST_1 = 1 - 2**-53


def model(number: int) -> Model:
    """A model whose distribution depends on the last two tokens; every third is very sure."""
    evenness = 0.05 if number % 3 == 0 else 0.5
    table = np.random.default_rng(number).dirichlet([evenness] * SIZE, (SIZE, SIZE))

    def after(context: tuple[TokenId, ...]) -> Distribution:
        p = table[context[-2], context[-1]]
        return Distribution(np.flatnonzero(p), p[p > 0.0])

    return after


def opening(**changes: object) -> Open:
    defaults = {"seed": 5, "max_tokens": 12, "stop_tokens": (STOP,)}
    return Open("m", "v", PROMPT, Sampling(), **{**defaults, **changes})  # type: ignore[arg-type]


def plain(target: Model, request: Open) -> list[TokenId]:
    """The text that the target alone generates for the request's seed."""
    text: list[TokenId] = []
    while len(text) < request.max_tokens and not (text and text[-1] in request.stop_tokens):
        at = noise_index(len(request.prompt), len(text))
        text.append(target((*request.prompt, *text)).picked(request.seed, at))
    return text


def distribution_of(*p: float) -> Distribution:
    kept = np.flatnonzero(p)
    return Distribution(kept, np.array(p)[kept] / np.sum(p))


def random_distribution(seed: int, size: int, spread: float = 1.5) -> Distribution:
    values = np.random.default_rng(seed).normal(0, spread, size)
    return distribution(values.astype(np.float32), Sampling())


# Models whose distributions depend on the last token, two ends with these, and a test of their
# texts.

MARKOV_SIZE = 14


def table(number: int, evenness: float) -> list[Distribution]:
    """The distribution after each token."""
    rows = np.random.default_rng(number).dirichlet([evenness] * MARKOV_SIZE, MARKOV_SIZE)
    return [Distribution(np.arange(MARKOV_SIZE), row) for row in rows]


TARGET = table(1, 2.0)
DRAFTER = [quantise(distribution) for distribution in table(2, 1.0)]


def draft(edge: DraftingSession, chance: Random) -> None:
    """Extend the chain by up to three draft tokens."""
    last = edge.context[-1] if edge.chain or edge.committed else 0
    for _ in range(chance.randrange(4)):
        if edge.may_extend:
            q = DRAFTER[last]
            last = q.at(chance.random())
            edge.extend(DraftToken(last, 0.5, q))


@dataclass
class Ends:
    """The edge, and one verifier after another, each of which is lost after a few messages. A
    pass takes up to three draft tokens, and `separate` judges them."""

    chance: Random
    loses: float = 0.0
    """How often a verifier is lost after a message."""

    rejudges: bool = False
    """A draft token that was rejected elsewhere is judged anew, as if it had not been."""

    tokens: int = 1000
    lost: int = field(default=0, init=False)
    pending: int = field(default=0, init=False)
    """Verifiers that were lost after a rejection that the edge had yet to answer."""

    def __post_init__(self) -> None:
        request = Open("", "", (0,), Sampling(), 0, self.tokens, (), judge="separate")
        self.u: Iterator[float] = iter(self.chance.random, 2.0)
        self.half = SeparateEdge(request, self.u)
        self.machine = DraftMachine(
            request, StreamPolicy(), Limits(), self.half, rtt_s=lambda: 0.0
        )
        self._open()

    def _open(self) -> None:
        opening = self.machine.opening()
        self.pending += opening.rejected
        if self.rejudges:
            opening = replace(opening, rejected=False)
            self.half._in_tail = False
        self.verifier = VerifyingSession(
            opening, Limits(), vocabulary_size=MARKOV_SIZE, u=self.u
        )

    def run(self) -> list[TokenId]:
        edge = self.machine.session
        while not edge.finished:
            draft(edge, self.chance)
            if sent := edge.flush():
                self._deliver(self.verifier.receive(sent))
            if self.verifier.may_begin:
                self._deliver(self._pass())
        return edge.committed

    def _pass(self) -> list[Down]:
        judged = self.verifier.begin(len(self.verifier.plan(3)))
        before = [(0, *self.verifier.committed)[-1], *judged.draft]
        return self.verifier.resolve(
            judged.rule.judge(lambda i: TARGET[before[i]], judged.draft)
        )

    def _deliver(self, down: list[Down]) -> None:
        """Let the edge receive, and the verifier what the edge answers; or lose the rest."""
        for message in down:
            for answer in self.machine.received(message).send:
                if self._lose():
                    return
                self._deliver(self.verifier.receive(answer))
            if self._lose():
                return

    def _lose(self) -> bool:
        if self.chance.random() >= self.loses:
            return False
        self.lost += 1
        self.machine.lost()
        self._open()
        return True


def pvalue(texts: Sequence[list[int]]) -> float:
    """Test the counts of each token after each other token against the target."""
    counts = np.zeros((MARKOV_SIZE, MARKOV_SIZE))
    for text in texts:
        np.add.at(counts, ([0, *text[:-1]], text), 1)
    expected = counts.sum(1, keepdims=True) * np.array(
        [distribution.p for distribution in TARGET]
    )
    statistic = ((counts - expected) ** 2 / expected).sum()
    return float(stats.chi2.sf(statistic, MARKOV_SIZE * (MARKOV_SIZE - 1)))


# Texts that repeat themselves, and what followed before, found without an index.

texts = st.lists(st.tuples(st.integers(0, 2), st.integers(1, 12)), max_size=12).map(
    lambda runs: [token for token, times in runs for _ in range(times)]
)
"""Runs of one token among few: long n-grams come back."""


def search(text: Sequence[TokenId]) -> Match | None:
    """The longest n-gram first, its last occurrence with a token after it."""
    for n in LENGTHS:
        for at in range(len(text) - 1, n - 1, -1):
            if len(text) > n and text[at - n : at] == text[len(text) - n :]:
                return Match(text[at], at, n)
    return None


# What settings change of the logits, token by token, from the definitions of others.


def slow(
    logits: Sequence[float],
    prompt: Sequence[int],
    output: Sequence[int],
    asked: dict[str, Any],
    stop_tokens: Sequence[int],
) -> list[float]:
    """Return the logits after `output`, as `vllm.model_executor.layers.utils.apply_penalties`,
    vLLM's processors of min_tokens and logit_bias, and transformers'
    RepetitionPenaltyLogitsProcessor define them."""
    counts, expected = Counter(output), []
    for token, logit in enumerate(logits):
        value = logit + asked.get("logit_bias", {}).get(token, 0.0)
        if token in prompt or token in output:
            penalty = asked.get("repetition_penalty", 1.0)
            value = value * penalty if value < 0 else value / penalty
        value -= asked.get("frequency_penalty", 0.0) * counts[token]
        value -= asked.get("presence_penalty", 0.0) * (token in output)
        barred = token in stop_tokens and len(output) < asked.get("min_tokens", 0)
        expected.append(-inf if barred else value)
    if not (budget := asked.get("thinking_budget")) or budget["closing"] in output:
        return expected
    if len(output) != 1 + budget["tokens"] or output[0] != budget["opening"]:
        return expected
    return [0.0 if token == budget["closing"] else -inf for token in range(len(logits))]
