"""Computes speed-ups of one run, arm against arm, and each policy's best round length."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from bench.long_work import root, scenario_of
from bench.results import Answer, Key, Results, references
from bench.statistics import Mean, mean

ROUNDS = ("sync", "paper", "colocated")
"""Arms of these kinds have a round length."""

RIVALS = ("cloud-ngram", "cloud-suffix", "cloud-draft")
"""Arms of these kinds are vLLM's own speculation; their number is that of the tokens it
drafts."""

Link = tuple[float, float | None]
"""A link is named by its rtt_ms and its rate_mbit."""


class Comparison:
    """A Comparison has the answers of a run at one temperature."""

    def __init__(self, results: Results, temperature: float) -> None:
        self.answers = [a for a in results.answers if a.temperature == temperature]
        self.cloud = references(self.answers)
        self.arms = list(dict.fromkeys(a.arm for a in self.answers))
        self.families = list(dict.fromkeys(a.family for a in self.answers))
        links: dict[Link, None] = dict.fromkeys((a.rtt_ms, a.rate_mbit) for a in self.answers)
        self.links = list(links)

    def of(self, arm: str, link: Link) -> list[Answer]:
        """Return an arm's answers over a link; all of `edge-only`, which has no link."""
        own = (a for a in self.answers if a.arm == arm)
        return [a for a in own if arm == "edge-only" or (a.rtt_ms, a.rate_mbit) == link]

    def speedup(self, arm: str, link: Link, families: Sequence[str]) -> Mean | None:
        """Return the geometric mean against cloud; None if the arm was not asked."""
        own = (a for a in self.of(arm, link) if a.family in families)
        return _faster(own, self.cloud)

    def against(self, arm: str, other: str, link: Link) -> Mean | None:
        """Return how much faster `arm` is than `other`, over all families."""
        return _faster(self.of(arm, link), {a.asked: a for a in self.of(other, link)})

    def best(self, kind: str, link: Link) -> str | None:
        """Return the arm of a kind whose round length is fastest over this link."""
        best_speeds = {
            arm: measured.value
            for arm in self.arms
            if arm.partition(":")[0] == kind
            and (measured := self.speedup(arm, link, self.families))
        }
        return max(best_speeds, key=lambda arm: best_speeds[arm]) if best_speeds else None


def _faster(answers: Iterable[Answer], others: Mapping[Key, Answer]) -> Mean | None:
    """Return how much faster answers are than others to the same questions. All kinds of turns
    of a scenario's family count as one family."""
    ratios = (
        (root(a.family), a.prompt, a.tokens_per_s / others[a.asked].tokens_per_s)
        for a in answers
        if a.asked in others and a.shows_rate and others[a.asked].shows_rate
    )
    return mean(ratios, scenario_of)
