"""Finds out whether draft tokens pay: tokens a second with them and without them.

Where both ends share a machine, drafting makes the target's passes longer. Nothing can
compute by how much, so an edge measures it. A SpeedupEstimate belongs to one verifier and one
kind of draft tokens. From time to time all answers of the edge draft together for a few Commits
and then pause together for as many, and the times of these Commits are compared. Such probes
are rare where they cost much.

Each answer has an AnswerSpeedup of the SpeedupEstimate: the tokens of its Commits, and how much
longer than others they take because of the rows that the verifier judges. An answer without a
speed-up pauses, and tries again after a while."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from speculation.learning import running_mean
from speculation.messages import Commit

WINDOW: Final = 8
"""This many Commits are compared with as many. The longest of each side does not count, because
other work of a host disturbs single passes."""

MAX_TRIED: Final = 4 * WINDOW
"""A probe ends after this many Commits of each answer, even if few of them can be compared."""

FIRST_PROBE_COST: Final = 1 / 32
LATER_PROBE_COST: Final = 1 / 256
"""A probe may cost this share of the Commits since the one before."""

MAX_APART: Final = 512
"""The first probe begins after 8 Commits, the next ones after 32, 128 and then always so many;
each later where it costs much."""

MIN_SPEEDUP: Final = 1.01
"""An answer pauses if its draft tokens bring less than this: they also cost the edge power."""

PRIOR: Final = 1.05
PRIOR_COMMITS: Final = 8
"""An answer is expected to get this many tokens from a Commit, as if seen so often."""

MIN_WEIGHT: Final = 1 / 32
"""The latest Commit of an answer has at least this weight."""

PLAIN_WEIGHT: Final = 1 / 16
EARNED_WEIGHT: Final = 1 / 64
COST_WEIGHT: Final = 1 / 4

MAX_LONGER: Final = 4.0
"""A Commit counts as at most this many times longer than a plain one: more is a disturbance."""

TRY: Final = 12
"""An answer drafts for at least this many Commits, or none that it drafts for would count."""

MAX_TRY_COST: Final = 1 / 64
"""Tries in vain may cost this share of the time: so much longer are the pauses between them."""

MIN_PAUSE: Final = 64
"""A pause lasts for at least this many Commits of all answers that pause."""


class Probes:
    """From time to time all answers draft together, and then all pause together, and the times
    of their Commits are compared."""

    def __init__(self) -> None:
        self.forced: bool | None = None
        """During a probe, all answers draft (True), and then all pause (False)."""

        self.ended = 0
        """So many probes have found how much longer Commits take."""

        self._begun = 0
        self._answers = self._drafting = 0
        self._window: list[float] = []  # seconds of Commits in this part of the probe
        self._drafting_s = 0.0  # in its first part
        self._since = 0  # Commits since the last probe, or in this one

    def joined(self, *, drafts: bool) -> None:
        """Note that an answer begins."""
        self._answers += 1
        self._drafting += drafts

    def left(self, *, drafts: bool) -> None:
        """Note that an answer ends."""
        self._answers -= 1
        self._drafting -= drafts

    def switched(self, *, drafts: bool) -> None:
        """Note that an answer begins to draft, or to pause."""
        self._drafting += 1 if drafts else -1

    def passed(self, lost: float, on_the_way: float) -> bool:
        """Note a Commit of any answer; return True if it ends a probe in vain. lost: the tokens
        that a probe would cost. on_the_way: see AnswerSpeedup.committed."""
        self._since += 1
        if self.forced is not None:
            is_over = self._since > (MAX_TRIED + on_the_way) * self._answers
            if is_over:
                self._end()
            return is_over
        share = LATER_PROBE_COST if self._begun else FIRST_PROBE_COST
        apart = min(MAX_APART, WINDOW * 4**self._begun)
        if self._since >= max(apart, lost / share):
            self.forced, self._since = True, 0
            self._begun += 1
        return False

    def observe(self, seconds: float, *, drafts: bool) -> float | None:
        """Take in the time of a Commit that can be compared with others. If it ends the probe,
        return how many times longer Commits take while answers draft."""
        if drafts is not self.forced or self._drafting != (self._answers if drafts else 0):
            return None
        self._window.append(seconds)
        if len(self._window) < WINDOW:
            return None
        typical_s = _typical(self._window)
        self._window.clear()
        if drafts:
            self.forced, self._drafting_s = False, typical_s
            return None
        self._end()
        self.ended += 1
        return self._drafting_s / typical_s

    def _end(self) -> None:
        self._window.clear()
        self.forced, self._since = None, 0


class SpeedupEstimate:
    """A SpeedupEstimate learns what one kind of draft tokens earns at one verifier, from all
    answers."""

    def __init__(self) -> None:
        self.cost = 1.0
        """A Commit without accepted draft tokens takes this many times longer while answers
        draft than while they pause."""

        self.plain_s = 0.0
        """The seconds of such a Commit while answers draft; 0 if unknown."""

        self._earned = PRIOR
        """The tokens of Commits of answers that draft, over how much longer these take."""

        self.pause = 0.0
        """Answers that pause have this many Commits, before one of them tries again."""

        self.probes = Probes()

    def learned_statistics(self) -> dict[str, object]:
        """Return what was learned, for a person to read."""
        return {"cost": self.cost, "speedup": self.speedup, "probes": self.probes.ended}

    @property
    def speedup(self) -> float:
        """Tokens a second of answers that draft, over those of answers that pause."""
        return self._earned / max(1.0, self.cost)

    def earned(self, tokens: float, longer: float) -> None:
        """Learn from a Commit of an answer that drafts."""
        self._earned = running_mean(self._earned, tokens / longer, EARNED_WEIGHT)

    def plain(self, seconds: float) -> None:
        """Learn from a Commit without accepted draft tokens of an answer that drafts."""
        self.plain_s = running_mean(self.plain_s or None, seconds, PLAIN_WEIGHT)

    def passed(self, lost: float, on_the_way: float) -> None:
        """Note a Commit of any answer: see Probes.passed."""
        if self.probes.passed(lost, on_the_way):
            self._probed()

    def observe(self, seconds: float, *, drafts: bool) -> None:
        """Take in the time of a Commit that can be compared with others."""
        if (longer := self.probes.observe(seconds, drafts=drafts)) is not None:
            weight = max(COST_WEIGHT, 1 / self.probes.ended)
            self.cost = running_mean(self.cost, longer, weight)
            self._probed()

    def _probed(self) -> None:
        """Let answers pause after a probe, unless draft tokens pay."""
        self.pause = 0.0 if self.speedup >= MIN_SPEEDUP else float(MIN_PAUSE)


def _typical(window: Sequence[float]) -> float:
    """Return the mean of a window without its longest value."""
    return (sum(window) - max(window)) / (len(window) - 1)


class SpeedupEstimates:
    """The SpeedupEstimates at one verifier, which an edge remembers."""

    def __init__(self) -> None:
        self.draft = SpeedupEstimate()
        self.lookup = SpeedupEstimate()  # judged while no draft model works

    def learned_statistics(self) -> dict[str, object]:
        """Return what was learned, for a person to read."""
        return {
            "draft": self.draft.learned_statistics(),
            "lookup": self.lookup.learned_statistics(),
        }


class AnswerSpeedup:
    """One answer's part in a SpeedupEstimate."""

    def __init__(self, estimate: SpeedupEstimate) -> None:
        self.estimate = estimate
        may_draft = estimate.speedup >= MIN_SPEEDUP or estimate.pause <= 0.0
        self.drafts = may_draft if estimate.probes.forced is None else estimate.probes.forced
        estimate.probes.joined(drafts=self.drafts)
        self._tokens, self._longer, self._seen = PRIOR, 1.0, PRIOR_COMMITS
        self._since = 0  # Commits since the answer began to draft, or to pause

    @property
    def speedup(self) -> float:
        """Tokens a second with draft tokens, over those without."""
        return self._tokens / self._longer / max(1.0, self.estimate.cost)

    def leave(self) -> None:
        """Note that the answer ends."""
        self.estimate.probes.left(drafts=self.drafts)

    def move_to(self, estimate: SpeedupEstimate) -> None:
        """Go on at the verifier of another SpeedupEstimate, or of the same one."""
        self.estimate.probes.left(drafts=self.drafts)
        self.estimate = estimate
        estimate.probes.joined(drafts=self.drafts)

    def committed(self, commit: Commit, on_the_way: float, *, clear: bool) -> None:
        """Take in a Commit of a pass. on_the_way: so many Commits cannot show yet what the edge
        does now. clear: while the edge pauses, no draft token of before is left; while it
        drafts, it has no other reason to pause."""
        estimate = self.estimate
        self._since += 1
        if self._since > on_the_way:
            self._observe(commit, clear=clear)
        lost = (WINDOW + min(on_the_way, MAX_TRIED)) * abs(
            max(self.speedup, estimate.speedup) - 1.0
        )
        estimate.passed(lost, on_the_way)
        drafts = self._should_draft(on_the_way)
        if estimate.probes.forced is None and not (drafts or self.drafts):
            estimate.pause -= 1.0
        if drafts is not self.drafts:
            if estimate.probes.forced is None:
                loss = 0.0 if drafts else max(0.0, 1.0 / self.speedup - 1.0)
                estimate.pause = max(MIN_PAUSE, loss * self._since / MAX_TRY_COST)
            self.drafts, self._since = drafts, 0
            estimate.probes.switched(drafts=drafts)

    def _observe(self, commit: Commit, *, clear: bool) -> None:
        estimate, seconds = self.estimate, commit.queue_s + commit.pass_s
        is_plain = clear and commit.drafts == 0
        if self.drafts:
            if is_plain:
                estimate.plain(seconds)
            is_timed = clear and estimate.plain_s > 0.0
            longer = min(MAX_LONGER, seconds / estimate.plain_s) if is_timed else 1.0
            self._learn(len(commit.tokens) - commit.verifier_accepted, longer)
        if is_plain:
            estimate.observe(seconds, drafts=self.drafts)

    def _learn(self, tokens: int, longer: float) -> None:
        self._seen += 1
        weight = max(MIN_WEIGHT, 1 / self._seen)
        self._tokens = running_mean(self._tokens, tokens, weight)
        self._longer = running_mean(self._longer, longer, weight)
        self.estimate.earned(tokens, longer)

    def _should_draft(self, on_the_way: float) -> bool:
        if self.estimate.probes.forced is not None:
            return self.estimate.probes.forced
        if self.speedup >= MIN_SPEEDUP:
            return True
        if self.drafts:
            return self._since < on_the_way + TRY
        return self.estimate.pause <= 0.0


class AnswerSpeedups:
    """One answer's parts in the SpeedupEstimates of its session's verifier. here: returns
    these; None: the answer drafts whatever its draft tokens earn."""

    def __init__(
        self, here: Callable[[], SpeedupEstimates] | None, *, drafts: bool, looks_up: bool
    ) -> None:
        self._here = here
        estimates = here() if here else None
        self.draft = AnswerSpeedup(estimates.draft) if estimates and drafts else None
        self.lookup = AnswerSpeedup(estimates.lookup) if estimates and looks_up else None

    def start_drafting(self) -> None:
        """Note that the draft model is there by now."""
        if self._here is not None:
            self.draft = AnswerSpeedup(self._here().draft)

    def stop_drafting(self) -> None:
        """Note that the draft model has failed."""
        if self.draft is not None:
            self.draft.leave()
            self.draft = None

    def move(self) -> None:
        """Go on at the verifier of the next session."""
        if self._here is None:
            return
        estimates = self._here()
        if self.draft is not None:
            self.draft.move_to(estimates.draft)
        if self.lookup is not None:
            self.lookup.move_to(estimates.lookup)

    def leave(self) -> None:
        """Note that the answer ends."""
        for speedup in (self.draft, self.lookup):
            if speedup is not None:
                speedup.leave()
        self.draft = self.lookup = None
