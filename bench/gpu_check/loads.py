"""The speeds of engines under load are collected, compared with those of their baselines, and
reported as text.

Engines run one after another. If one is too slow, its baseline is measured again after it,
and the slower of the two counts, because the host may have become slower in between.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from bench.capacity import Row
from bench.tables import markdown

UNPLUGGED: Final = "stock vLLM"

AGAIN: Final = ", again"
"""The name of an engine that is measured again ends with this."""

MIN_RATIO: Final = 0.9
"""This is the least ratio of tokens/s: of requests without sessions, with the plugin and
without it; of sessions and requests without one; and of sessions beside vLLM's own speculation,
and this speculation without them."""

MAX_BUSY: Final = 0.9
"""Clients that are busy for more of the time are what is measured: no ratio is concluded."""

HEADLINE: Final = (
    "sessions", "engine", "tokens/s", "/ stock", "slowest", "gap p50, p95, ms",
    "stock's text", "clients busy",
)  # fmt: skip


Place = tuple[str, int]
"""A Place has an engine and a number of sessions."""


@dataclass(frozen=True, slots=True)
class Loads:
    rows: dict[tuple[int, str], Row] = field(default_factory=dict)
    """The rows are found by the number of sessions and the engine's name."""

    def add(self, name: str, row: Row) -> list[str]:
        """Add a row; return its line of the table."""
        self.rows[row.sessions, name] = row
        return self._line(name, row)

    def has(self, name: str) -> bool:
        return any(each == name for _, each in self.rows)

    def shares(self, baselines: Mapping[str, str]) -> dict[Place, float]:
        """Return, by engine and number of sessions, its share of the tokens/s of its baseline,
        of which the slower measurement counts; none where the clients were full."""
        pairs = self._pairs(baselines).items()
        return {place: max(ratios) for place, (full, ratios) in pairs if not full}

    def full(self, baselines: Mapping[str, str]) -> list[Place]:
        """Return the loads whose ratio is not measured, because the clients were full."""
        return [place for place, (full, _) in self._pairs(baselines).items() if full]

    def _pairs(self, baselines: Mapping[str, str]) -> dict[Place, tuple[bool, list[float]]]:
        """Return, by engine and number of sessions, whether clients were full, and the ratios
        to the measurements of its baseline."""
        found = {}
        for (sessions, name), row in self._sorted():
            stock = baselines.get(name, "")
            names = (sessions, stock), (sessions, stock + AGAIN)
            if stocks := [self.rows[each] for each in names if each in self.rows]:
                full = any(each.busy_share > MAX_BUSY for each in (row, *stocks))
                found[name, sessions] = full, [_ratio(row, each) for each in stocks]
        return found

    def compared(self, baselines: Mapping[str, str]) -> Iterator[str]:
        """Yield paragraphs: each promise, notes on the figures, and all figures."""
        lines = [
            f"- {name}, {sessions} at once: {share:.2f} of the tokens/s of {baselines[name]}"
            f"{'' if share >= MIN_RATIO else '. **This is too slow.**'}"
            for (name, sessions), share in self.shares(baselines).items()
        ]
        lines += [
            f"- {name}, {sessions} at once: not measured, the clients were full"
            for name, sessions in self.full(baselines)
        ]
        yield "\n".join([f"{MIN_RATIO:g} is the least for:\n", *lines])
        changes = [
            ratio
            for (_, name), row in self.rows.items()
            if name.endswith(AGAIN)
            for ratio in self._ratios(row, name.removesuffix(AGAIN))
        ]
        if not all(MIN_RATIO <= change <= 1 / MIN_RATIO for change in changes):
            text = ", ".join(f"{change:.2f}" for change in changes)
            yield (
                f"**The host was not steady**: measured again, an engine made {text} of its "
                "own tokens/s. Engines compare badly here; run this where nothing else runs."
            )
        yield f"Clients that are busy for more than {MAX_BUSY:g} of the time are full."
        yield markdown(HEADLINE, [self._line(name, row) for (_, name), row in self._sorted()])

    def _sorted(self) -> list[tuple[tuple[int, str], Row]]:
        return sorted(self.rows.items(), key=lambda item: item[0][0])

    def _ratios(self, row: Row, name: str) -> list[float]:
        """Return the ratio of a row to another engine's, if that one was measured."""
        load = self.rows.get((row.sessions, name))
        return [_ratio(row, load)] if load else []

    def _line(self, name: str, row: Row) -> list[str]:
        own, ratio = row.measured, "".join(f"{r:.2f}" for r in self._ratios(row, UNPLUGGED))
        return [
            f"{row.sessions}", name, f"{own.tokens_per_s:.1f}", ratio,
            f"{own.slowest_tokens_per_s:.2f}", f"{own.gap_ms_p50:.0f}, {own.gap_ms_p95:.0f}",
            f"{own.scripted_share:.2f}" if row.arm == "picospec" else "",
            f"{row.busy_share:.2f}",
        ]  # fmt: skip


def _ratio(row: Row, stock: Row) -> float:
    return row.measured.tokens_per_s / stock.measured.tokens_per_s
