"""The edge's machine returns an Outcome to its driver; tallies and an observer accompany it."""

from __future__ import annotations

from dataclasses import dataclass

from picospec.speculation.protocol.messages import (
    Commit,
    Down,
    Finish,
    Pushed,
    TokenId,
    Totals,
)


@dataclass(frozen=True, slots=True)
class DraftStep:
    """The draft model is asked for this step."""

    context: list[TokenId]
    """The step follows these output tokens: the committed ones and the chain."""

    ahead: list[TokenId]  # tokens that the step also reads behind its context
    epoch: int
    asked_at: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """A driver must do these things, in the order of the fields."""

    send: tuple[Pushed, ...] = ()
    step: DraftStep | None = None
    commit: Commit | None = None  # tokens that were not known before, to be shown
    finish: Finish | None = None


@dataclass(slots=True)
class DraftCounts:
    """Counts one answer's draft tokens by source, its stale steps and its reused tokens."""

    drafted: int = 0
    looked_up: int = 0  # proposed without a step: by lookup, or forced by a grammar
    stale_steps: int = 0  # steps whose chain had broken when they ended
    reused: int = 0  # tokens of the prompt that the target did not have to read


class Tally:
    """Counts an answer's passes and draft tokens where some of its sessions were lost.

    A verifier sends its own counts with its Finish. A lost session has no Finish, so its
    Commits are counted instead: each stands for one pass and for the draft tokens that it
    accepted.
    """

    def __init__(self) -> None:
        self.totals = Totals()
        """The sum over the Commits of all sessions so far."""

        self._before = Totals()  # the part that lost sessions have counted

    def add(self, commit: Commit) -> None:
        if commit.tokens:
            accepted = commit.drafts
            filled = int(accepted == 0)
            self.totals = self.totals.plus(Totals(1, accepted, accepted, filled, commit.own))

    def lost(self) -> None:
        """Note that the session is lost: another verifier counts from here on."""
        self._before = self.totals

    def finished(self, finish: Finish) -> Finish:
        """Return the last session's Finish with the totals of all sessions."""
        return Finish(finish.reason, self._before.plus(finish.totals))


class Observer:
    """A machine reports its inputs and decisions to this interface; this class ignores them."""

    def opened(self) -> None:
        """A session is about to be opened."""

    def decided(self, outcome: Outcome, now: float) -> None:
        """The machine has decided what to send, without a message."""

    def before(self, message: Down) -> None:
        """The machine is about to take in a message."""

    def after(self, outcome: Outcome) -> None:
        """The machine has taken in the message."""
