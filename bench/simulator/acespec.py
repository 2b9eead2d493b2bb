"""AceSpec (arXiv:2609.02514) has the rounds of `paper`, and a cache of branches at the edge.

While a round is away the edge extends the chain, and in the same batched steps it drafts
branches: continuations of other tokens at each depth of the round, more of them near its
start. A recovered token with which a branch begins is a *hit*: the next round is looked up,
as far as the branch goes. Each rejection still takes a round trip.

Where the paper leaves a detail open, the arm has the fastest variant:

- The number of branches by depth falls with the answer's own acceptance, known beforehand.
- Each step extends every branch by a token, in the time that the device takes to read the
  chain's token and one of each branch together. The first step begins when the round is sent.
- A hit ends the running step. The rest of a branch that is too short for a round is drafted.
- At temperature 1 the edge ranks tokens with the noise that it shares with the target.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from bench.simulator.clock import Action, Clock
from bench.simulator.edge import Edge
from bench.simulator.hosts import Curve
from bench.simulator.source import Source
from speculation.draft_machine import DraftMachine, DraftStep
from speculation.draft_token import DraftToken
from speculation.messages import Draft, Pushed

ROUNDING: Final = 1e-9
"""A step counts even if it ends late by this share of a step: sums of times are inexact."""


def branches_by_depth(branches: int, gamma: int, acceptance: float) -> list[int]:
    """Return the number of branches at each of gamma + 1 depths, including the bonus token's,
    in proportion to acceptance ** depth, rounded by D'Hondt's method."""
    counts = [0] * (gamma + 1)
    for _ in range(branches):
        shares = [acceptance**depth / (count + 1) for depth, count in enumerate(counts)]
        counts[shares.index(max(shares))] += 1
    return counts


class CachingEdge(Edge):
    """This edge looks up the next round after a rejection, if it has drafted it."""

    def __init__(
        self, clock: Clock, source: Source, machine: DraftMachine, draft_s: Curve, done: Action,
        branches: Sequence[int],
    ) -> None:  # fmt: skip
        """Set up. branches: the numbers that are drafted at each of gamma + 1 depths, while a
        round of gamma draft tokens is away."""
        super().__init__(clock, source, machine, draft_s, done)
        self._gamma = len(branches) - 1
        self._branches = branches
        self._batch_s = draft_s.of(1 + sum(branches))
        self._round_start, self._sent_s = 0, 0.0
        self._epoch = 0
        self._cached_end = 0
        """The cache contains draft tokens up to this position."""

        self._first_epoch = 0
        """A hit ended the steps of earlier epochs."""

    def _send(self, messages: Sequence[Pushed]) -> None:
        for message in messages:
            if isinstance(message, Draft):
                self._round_start, self._sent_s = message.start, self._clock.now_s
        super()._send(messages)

    def _act(self) -> None:
        session = self.machine.session
        if session.epoch != self._epoch:
            self._epoch = session.epoch
            self._look_up(len(session.committed) - 1)
        super()._act()

    def _look_up(self, rejected: int) -> None:
        """Take the branch that begins with the recovered token at `rejected`, if there is one.

        A round has one more token if its predecessor was confirmed before the round was judged;
        as many branches follow that token as the bonus token.
        """
        depth, self._cached_end = min(rejected - self._round_start, self._gamma), 0
        if self._source.ranks[rejected] < self._branches[depth]:
            self._cached_end = rejected + 1 + self._steps_away()
            self._busy, self._first_epoch = False, self._epoch

    def _steps_away(self) -> int:
        """Return the number of tokens that each branch got since the round was sent."""
        away_s = self._clock.now_s - self._sent_s
        return min(self._gamma, int(away_s / self._batch_s + ROUNDING))

    def _step_s(self, step: DraftStep, unread: int) -> float:
        if len(step.context) < self._cached_end:
            return 0.0
        if self.machine.session.in_flight and self._steps_away() < self._gamma:
            return self._batch_s
        return super()._step_s(step, unread)

    def _drafted(self, step: DraftStep, tokens: Sequence[DraftToken]) -> None:
        if step.epoch >= self._first_epoch:
            super()._drafted(step, tokens)
