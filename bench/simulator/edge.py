"""A user's device: it drafts while its arm lets it, sends, and notes when tokens come."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from bench.simulator.arms import Arm, Desk
from bench.simulator.clock import Action, Clock, Curve, Line
from bench.simulator.source import Source
from models.prefixes import common
from speculation.drafting.session import DraftingSession
from speculation.proposing.prompt_lookup import Lookup, take
from speculation.protocol.messages import Commit, Down, Finish, Opened, Pushed, TokenId, Totals
from speculation.sampling.draft_token import DraftToken


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
        self,
        clock: Clock,
        source: Source,
        arm: Arm,
        desk: Desk,
        draft_s: Curve,
        *,
        works: Callable[[float], None],
        done: Action,
    ) -> None:
        """works: is told until when the draft model works. done: is called at the end."""
        self.log = Log()
        self._clock = clock
        self._source = source
        self._arm = arm
        self._desk = desk
        self._draft_s = draft_s
        self._lookup = Lookup(source.prompt) if arm.lookup else None
        self._works = works
        self._done = done
        self._asked_s = clock.now_s
        self._cache: list[TokenId] = []
        self._opened = False
        self._waiting: list[Pushed] = []
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
        self._flush(self._drafting)
        if self._drafting:
            self._step()

    def _flush(self, drafting: bool) -> None:
        if self._arm.should_flush(self._desk, drafting) and (
            draft := self._session.flush(pauses=not drafting)
        ):
            self._send(draft)

    def _send(self, *messages: Pushed) -> None:
        """Send these and what waits, once the session is open."""
        self._waiting.extend(messages)
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
        """Decode what the draft model has not seen; what it says may come too late."""
        context = self._session.guessed
        ahead = self._lookup.ahead(self._session, self._desk.times) if self._lookup else []
        guesses = self._source.drafts(context, ahead)
        step_s = self._step_s(context, guesses, ahead)
        self._clock.after(step_s, lambda: self._drafted(context, guesses))

    def _step_s(
        self,
        context: list[TokenId],
        guesses: Sequence[DraftToken],
        ahead: Sequence[TokenId] = (),
    ) -> float:
        """Begin a step, and return how long it takes."""
        known = common(self._cache, context)
        more = max(0, len(context) - known - 1) + len(ahead)
        step_s = self._draft_s.of(1 + more)
        if self._lookup is not None:
            self._lookup.read(more, step_s, self._desk.draft_s)
        self._busy = True
        self._cache = [*context, *(guess.token for guess in guesses[:-1])]
        self._works(self._clock.now_s + step_s)
        self.log.drafted += len(guesses)
        self.log.drafting_s += step_s
        return step_s

    def _drafted(self, context: list[TokenId], guesses: Sequence[DraftToken]) -> None:
        self._busy = False
        if self._session.guessed == context and self._session.may_extend:
            take(self._session, guesses, lambda: self._arm.may_look_up(self._desk))
        self._act()
