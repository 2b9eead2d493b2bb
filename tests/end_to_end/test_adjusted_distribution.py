"""Penalties, biases, min_tokens and a budget of thoughts, drafted: all answers, enumerated.

Both ends run what ships, the edge's sampler and the embedded target's judge, over logits that
depend on the last token. The draft model is another one than the target.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import repeat

import msgspec
import numpy as np
import pytest
from scipy import stats

from edge_agent.draft.drafter import step_sampler
from speculation.draft_machine import DraftMachine
from speculation.draft_policy import StreamPolicy
from speculation.judges import JUDGES
from speculation.logits import adjustment
from speculation.messages import Down, Open, Sampling
from speculation.model_facts import Judge, Limits, ModelFacts
from speculation.verify_session import VerifyingSession
from tests.speculation.small_models import slow
from verifier.llama_target.pass_part import PassPart, judge

V = 4
STOP = 3
PROMPT = (2, 0)
FACTS = ModelFacts("m", V, "v", 99, [STOP], Limits(), ["coupled", "separate"], [])
SETTINGS = {
    "presence_penalty": 0.9,
    "frequency_penalty": -0.7,
    "repetition_penalty": 1.4,
    "logit_bias": {1: 0.6},
    "min_tokens": 2,
    "thinking_budget": {"tokens": 2, "closing": 0, "opening": 2},
}
TARGET = np.random.default_rng(1).normal(0, 1, (V, V)).astype(np.float32)
DRAFTER = np.random.default_rng(2).normal(0, 1, (V, V)).astype(np.float32)
"""Logits after each token."""

Text = tuple[int, ...]


def opening(how: Judge, seed: int = 0, temperature: float = 1.0) -> Open:
    raw = {name: msgspec.Raw(msgspec.json.encode(value)) for name, value in SETTINGS.items()}
    sampling = Sampling(temperature, extras=raw)
    return Open("m", "v", PROMPT, sampling, seed, 4, (STOP,), how)


class Session:
    """Both ends of one answer. drafts: how many draft tokens a chain may have."""

    def __init__(self, request: Open, drafts: int, *, drafter: np.ndarray = DRAFTER) -> None:
        self.chance = np.random.default_rng(request.seed)
        u: Iterator[float] = iter(self.chance.random, 2.0)
        self.verifier = VerifyingSession(request, Limits(), vocabulary_size=V, u=u)
        half = JUDGES[request.judge].edge(request, u)
        self.machine = DraftMachine(request, StreamPolicy(), Limits(), half, rtt_s=lambda: 0.0)
        self.edge = self.machine.session
        self.adjust = adjustment(request, vocabulary_size=V)
        self._sampler = step_sampler(request, FACTS, half.sampler, V)
        self._drafts, self._drafter = drafts, drafter

    def run(self) -> Text:
        while not self.verifier.finished:
            self._draft()
            if sent := self.edge.flush():
                self._receive(self.verifier.receive(sent))
            self._receive(self._pass())
        return tuple(self.edge.committed)

    def _draft(self) -> None:
        while self.edge.may_extend and len(self.edge.chain) < self._drafts:
            context = self.edge.context
            last = [*PROMPT, *context][-1]
            self.edge.extend(self._sampler(context)(self._drafter[last], len(context)))

    def _pass(self) -> list[Down]:
        judged = self.verifier.begin(len(self.verifier.plan(self._drafts)))
        committed, request = tuple(self.verifier.committed), self.verifier.request
        last = [*PROMPT, *committed][-1]
        part = PassPart(0, 0, last, judged, request, self.adjust, committed)
        verdict = judge(part, lambda i: TARGET[part.tokens[i]])
        return self.verifier.resolve(verdict.judgement)

    def _receive(self, down: Sequence[Down]) -> None:
        for message in down:
            for answer in self.machine.received(message).send:
                self._receive(self.verifier.receive(answer))


def exact() -> dict[Text, float]:
    """Every answer with its probability, from the definitions."""
    unfinished: dict[Text, float] = {(): 1.0}
    whole = {}
    while unfinished:
        text, mass = unfinished.popitem()
        if len(text) == 4 or text[-1:] == (STOP,):
            whole[text] = mass
            continue
        logits = TARGET[[*PROMPT, *text][-1]].tolist()
        weights = np.exp(slow(logits, PROMPT, text, SETTINGS, (STOP,)))
        for token, p in enumerate(weights / weights.sum()):
            if p > 0:
                unfinished[(*text, token)] = mass * p
    return whole


def pvalue(texts: Sequence[Text]) -> float:
    """Test how often each answer was given; the rare ones together."""
    expected, counts = exact(), Counter(texts)
    if not set(counts) <= set(expected):
        return 0.0  # an answer that there cannot be
    many = [text for text, p in expected.items() if p * len(texts) >= 5]
    found = [counts[text] for text in many]
    due = [expected[text] * len(texts) for text in many]
    rest = [len(texts) - sum(found)], [len(texts) - sum(due)]
    return float(stats.chisquare([*found, *rest[0]], [*due, *rest[1]]).pvalue)


def ignoring_drafts(session: Session) -> Session:
    """Let the judge adjust all rows of a pass by the committed text alone."""
    adjust = session.adjust
    assert adjust

    def wrong(logits: np.ndarray, output: Sequence[int]) -> np.ndarray:
        return adjust(logits, output[: len(session.verifier.committed)])

    session.adjust = wrong
    return session


def test_the_answers_of_separate_have_their_probabilities() -> None:
    texts = [Session(opening("separate", seed), 3).run() for seed in range(2000)]

    assert pvalue(texts) > 1e-3


def test_they_have_not_when_rows_ignore_the_draft_tokens_before_them() -> None:
    texts = [
        ignoring_drafts(Session(opening("separate", seed), 3)).run() for seed in range(2000)
    ]

    assert pvalue(texts) < 1e-6


def test_the_answers_of_coupled_are_the_plain_ones_and_have_their_probabilities() -> None:
    plain = [Session(opening("coupled", seed), 0).run() for seed in range(1000)]
    drafted = [Session(opening("coupled", seed), 3).run() for seed in range(1000)]

    assert drafted == plain
    assert pvalue(plain) > 1e-3


def test_a_coupled_answer_is_another_when_rows_ignore_the_draft_tokens_before_them() -> None:
    requests = [opening("coupled", seed) for seed in range(100)]

    assert [Session(r, 0).run() for r in requests] != [
        ignoring_drafts(Session(r, 3)).run() for r in requests
    ]


@pytest.mark.parametrize("how", ["coupled", "separate"])
def test_the_edge_drafts_from_what_the_judge_judges(how: Judge) -> None:
    """With the target's own logits nothing is rejected at temperature 0, nor in `separate`
    where q, in whole weights, hardly differs from p."""
    sessions = [
        Session(opening(how, seed, temperature), 3, drafter=TARGET)
        for seed, temperature in zip(range(200), repeat(0.0 if how == "coupled" else 1.0))
    ]
    for session in sessions:
        session.run()

    judged = sum(session.verifier.totals.judged for session in sessions)
    accepted = sum(session.verifier.totals.accepted for session in sessions)
    assert accepted > 200
    assert judged - accepted <= (0 if how == "coupled" else 2)


def test_a_row_that_was_read_ahead_is_adjusted_by_the_tokens_ahead_of_it() -> None:
    request = opening("coupled")
    draw = JUDGES["coupled"].edge(request, iter(())).sampler
    sampler = step_sampler(request, FACTS, draw, V)
    context, ahead = [1, 2], [0, 0, 1]

    read_ahead = sampler([*context, *ahead])
    for n in range(len(ahead) + 1):
        alone = sampler([*context, *ahead[:n]])
        position = len(context) + n
        assert read_ahead(DRAFTER[0], position) == alone(DRAFTER[0], position)
