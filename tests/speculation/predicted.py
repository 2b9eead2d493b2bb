"""One answer for which the client sent a prediction, on a verifier that judges four a pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import repeat
from math import inf

from speculation.drafting.machine import DraftMachine, DraftStep
from speculation.drafting.policy import StreamPolicy
from speculation.proposing.prediction import PredictedText, Prediction
from speculation.protocol.messages import Commit, Limits, Open, Sampling, TokenId
from speculation.sampling.draft_token import DraftToken

LIMITS = Limits(max_verify=4, max_ahead=16)
WRONG = 9999
PASS_S = 0.02
STEP_S = 0.01


@dataclass
class Predicted:
    """It runs to the end of `answer`. Each round the edge drafts what it wants, then a pass
    commits what of the first four draft tokens is right, and one token more."""

    predicted: Sequence[TokenId]
    answer: Sequence[TokenId]
    drafts: bool = True
    """Whether there is a draft model; it is always right."""

    steps: list[int] = field(default_factory=list)
    """The positions at which a draft step was asked for."""

    passes: int = 0
    unread: list[tuple[int, int, bool]] = field(default_factory=list)
    """The epoch and the position of tokens that needed no step, and whether each was right."""

    def __post_init__(self) -> None:
        self.prediction = Prediction(PredictedText(self.predicted), None)
        request = Open("m", "v", (1,), Sampling(), 0, len(self.answer), ())
        self.machine = DraftMachine(
            request, StreamPolicy(), LIMITS, rtt_s=lambda: 0.01, u=repeat(0.9),
            readable_tokens=inf if self.drafts else 0, lookup=self.prediction,
        )  # fmt: skip
        self.now = 0.0
        while self.known < len(self.answer):
            self._draft()
            self._pass()
        session = self.machine.session
        self.prediction.follow(session.committed, session.chain)

    @property
    def known(self) -> int:
        return len(self.machine.session.committed)

    def _draft(self) -> None:
        while (step := self._next()) is not None:
            self.steps.append(len(step.context))
            drafted = [self._drafted(len(step.context))]
            for token in step.ahead:
                if drafted[-1].token != token:
                    break
                drafted.append(self._drafted(len(step.context) + len(drafted)))
            self.now += STEP_S
            self.machine.drafted(step, drafted, self.now)

    @property
    def broken(self) -> int:
        """The chains that broke at a token of the prediction."""
        return len({epoch for epoch, _, right in self.unread if not right})

    def _next(self) -> DraftStep | None:
        session = self.machine.session
        end = session.end
        step = self.machine.next(self.now, busy=False).step
        for position in range(end, session.end):
            right = session.context[position] == self.answer[position]
            self.unread.append((session.epoch, position, right))
        return step

    def _drafted(self, position: int) -> DraftToken:
        return DraftToken([*self.answer, WRONG][position], 0.9)

    def _pass(self) -> None:
        self.passes += 1
        self.now += PASS_S
        start, epoch = self.known, self.machine.session.epoch
        right = 0
        for drafted in self.machine.session.chain[: LIMITS.max_verify]:
            if drafted.token != self.answer[start + right]:
                break
            right += 1
        tokens = tuple(self.answer[start : start + right + 1])
        self.machine.received(Commit(epoch, start, tokens, right, pass_s=PASS_S))
