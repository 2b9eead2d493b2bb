"""A user's device: it drafts while its arm lets it, sends, and notes when tokens come."""

from __future__ import annotations

from dataclasses import dataclass, field

from bench.simulator.arms import Arm, Desk
from bench.simulator.clock import Action, Clock, Curve, Line
from bench.simulator.source import Source
from speculation.drafting import DraftingSession, Guess
from speculation.lookup import Lookup
from speculation.messages import Commit, Down, Draft, Finish, Opened, TokenId, Totals


@dataclass(slots=True)
class Log:
    """What one answer was like from where the user sits."""

    arrivals: list[tuple[float, int]] = field(default_factory=list)
    """When tokens came (seconds from asking), and how many."""

    drafted: int = 0
    drafting_s: float = 0.0
    totals: Totals = field(default_factory=Totals)


class Edge:
    """One answer. `uplink` must be set before `start`."""

    uplink: Line

    def __init__(
        self, clock: Clock, source: Source, arm: Arm, desk: Desk, draft_s: Curve, done: Action
    ) -> None:
        self.log = Log()
        self._clock = clock
        self._source = source
        self._arm = arm
        self._desk = desk
        self._draft_s = draft_s
        self._lookup = Lookup(source.prompt) if arm.lookup else None
        self._done = done
        self._asked_s = clock.now_s
        self._cached: list[TokenId] = []
        self._opened = False
        self._waiting: list[Draft] = []
        self._busy = True

    @property
    def _session(self) -> DraftingSession:
        return self._desk.session

    def start(self, prefill_s: float) -> None:
        """Read the prompt, then draft."""
        self._clock.after(prefill_s, self._ready)

    def receive(self, message: Down) -> None:
        match message:
            case Opened():
                self._opened = True
                self._send()
            case Commit():
                progress = self._session.receive(message)
                self.log.arrivals.append(
                    (self._clock.now_s - self._asked_s, len(progress.tokens))
                )
                if message.start:
                    self._desk.pass_s = message.pass_s
                self._act()
            case Finish():
                self.log.totals = message.totals
                self._done()

    def _ready(self) -> None:
        self._busy = False
        self._act()

    def _act(self) -> None:
        if self._busy:
            return
        self._look_up()
        drafting = self._drafting
        if self._arm.should_flush(self._desk, drafting) and (
            draft := self._session.flush(pauses=not drafting)
        ):
            self._waiting.append(draft)
            self._send()
        if self._drafting:
            self._step()

    def _send(self) -> None:
        """Send what waits, once the session is open."""
        while self._opened and self._waiting:
            self.uplink.send(self._waiting.pop(0))

    def _look_up(self) -> None:
        if self._lookup is not None:
            self.log.drafted += self._lookup.draft(
                self._session, self._desk.times, lambda: self._arm.may_look_up(self._desk)
            )

    @property
    def _drafting(self) -> bool:
        return self._session.may_extend and self._arm.may_draft(self._desk)

    def _step(self) -> None:
        """Decode what the draft model has not seen; its guess may come too late to be used."""
        context, epoch = self._session.guessed, self._session.epoch
        step_s = self._draft_s.of(max(1, len(context) - _common(self._cached, context)))
        self._busy = True
        self._cached = context
        self.log.drafted += 1
        self.log.drafting_s += step_s
        guess = self._source.guess(context)
        if self._lookup is not None:
            self._lookup.stepped(epoch, len(context), step_s, self._desk.draft_s)
        self._clock.after(step_s, lambda: self._drafted(context, guess))

    def _drafted(self, context: list[TokenId], guess: Guess) -> None:
        self._busy = False
        if self._session.guessed == context and self._session.may_extend:
            self._session.extend(guess)
        self._act()


def _common(held: list[TokenId], context: list[TokenId]) -> int:
    """Return the length of the common beginning."""
    most = min(len(held), len(context))
    if held[:most] == context[:most]:
        return most
    return next(i for i, (a, b) in enumerate(zip(held, context, strict=False)) if a != b)
