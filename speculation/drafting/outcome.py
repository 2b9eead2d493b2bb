"""What the edge's machine asks of its driver, and what it counts."""

from __future__ import annotations

from dataclasses import dataclass

from picospec.speculation.protocol.messages import Commit, Down, Finish, Pushed, TokenId


@dataclass(frozen=True, slots=True)
class DraftStep:
    """One step asked of the draft model."""

    context: list[TokenId]
    """The step follows these output tokens: the committed ones and the chain."""

    ahead: list[TokenId]  # tokens that the step also reads behind its context
    epoch: int
    asked_at: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a driver must do, in the order of the fields."""

    send: tuple[Pushed, ...] = ()
    step: DraftStep | None = None
    commit: Commit | None = None  # tokens that were not known before, to be shown
    finish: Finish | None = None


@dataclass(slots=True)
class DraftCounts:
    """Counts one answer's draft tokens by where they came from, and more."""

    drafted: int = 0
    looked_up: int = 0  # proposed without a step: by lookup, or forced by a grammar
    stale_steps: int = 0  # steps whose chain had broken when they ended
    reused: int = 0  # tokens of the prompt that the target did not have to read


class Observer:
    """Is told what a machine is told, and what it decides; this one notes nothing."""

    def opened(self) -> None:
        """A session is about to be opened."""

    def decided(self, outcome: Outcome, now: float) -> None:
        """The machine has decided what to send, without a message."""

    def before(self, message: Down) -> None:
        """The machine is about to take in a message."""

    def after(self, outcome: Outcome) -> None:
        """The machine has taken it in."""
