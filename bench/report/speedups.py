"""Speed-ups of one run, arm against arm, and each policy's best round length."""

from __future__ import annotations

from collections.abc import Sequence

from bench.data.results import Answer, Results, references, speedup
from bench.data.statistics import Mean, mean

ROUNDS = ("sync", "paper", "colocated")
"""Kinds of arms that have a round length."""

Link = tuple[float, float | None]
"""rtt_ms and rate_mbit."""


class Comparison:
    """The answers at one temperature."""

    def __init__(self, results: Results, temperature: float) -> None:
        self.answers = [a for a in results.answers if a.temperature == temperature]
        self.cloud = references(self.answers)
        self.arms = list(dict.fromkeys(a.arm for a in self.answers))
        self.families = list(dict.fromkeys(a.family for a in self.answers))
        links: dict[Link, None] = dict.fromkeys((a.rtt_ms, a.rate_mbit) for a in self.answers)
        self.links = list(links)

    def of(self, arm: str, link: Link) -> list[Answer]:
        """Return an arm's answers over a link; those of `edge-only`, which has none, always."""
        own = (a for a in self.answers if a.arm == arm)
        return [a for a in own if arm == "edge-only" or (a.rtt_ms, a.rate_mbit) == link]

    def speedup(self, arm: str, link: Link, families: Sequence[str]) -> Mean | None:
        """Return the geometric mean against cloud; None where the arm was not asked."""
        return mean(
            (a.family, a.prompt, speedup(a, self.cloud))
            for a in self.of(arm, link)
            if a.family in families and a.asked in self.cloud
        )

    def against(self, arm: str, other: str, link: Link) -> Mean | None:
        """Return how much faster `arm` is than `other`, over all families."""
        rates = {a.asked: a.tokens_per_s for a in self.of(other, link)}
        return mean(
            (a.family, a.prompt, a.tokens_per_s / rates[a.asked])
            for a in self.of(arm, link)
            if a.asked in rates
        )

    def best(self, kind: str, link: Link) -> str | None:
        """Return the arm of a kind whose round length is the fastest over this link."""
        found = {
            arm: measured.value
            for arm in self.arms
            if arm.partition(":")[0] == kind
            and (measured := self.speedup(arm, link, self.families))
        }
        return max(found, key=lambda arm: found[arm]) if found else None
