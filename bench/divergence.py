"""Finds where two answers first differ, and how close the choice was there.

A target generates the token with the highest score: its log-probability plus temperature
times noise, in the units of its logits. Batches of another shape round logits differently.
That changes an answer only if the best two scores are about as close as two neighbouring
numbers of the target's type (a *near-tie*). Any other difference is a defect.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

RESOLUTION = 2.0**-10
"""Log-probabilities are compared in this unit, which is coarser than their rounding."""

Noise = Callable[[int, bytes], float]
"""A Noise is called with a position and a piece, and returns what sampling adds to the
log-probability; 0 at temperature 0."""


@dataclass(frozen=True, slots=True)
class TokenScores:
    """A TokenScores has a token of an answer, and the log-probabilities at its position."""

    piece: bytes
    logprob: float
    likeliest: tuple[tuple[bytes, float], ...] = ()
    """These pieces (empty for special tokens) have these log-probabilities, likeliest first."""

    def of(self, piece: bytes) -> float | None:
        """Return a token's log-probability at this position; None if unknown."""
        return (dict(reversed(self.likeliest)) | {self.piece: self.logprob}).get(piece)

    @property
    def step(self) -> float:
        """Return the distance of neighbouring logits here, the grid of the best ones.

        bfloat16 keeps 8 bits, so logits from 16 to 32 are 1/8 apart; if some of the best are
        below 16, the step is 1/16. It is RESOLUTION if there is no grid, as in float32.
        """
        best = max(logprob for _, logprob in self.likeliest or ((b"", self.logprob),))
        gaps = {round((best - logprob) / RESOLUTION) for _, logprob in self.likeliest} - {0}
        return RESOLUTION * min((gap & -gap for gap in gaps), default=1)


Scores = Sequence[TokenScores]


@dataclass(frozen=True, slots=True)
class Divergence:
    """A Divergence is the first position where an edge's answer differs from the plain one."""

    position: int
    plain: str
    edge: str
    plain_gap: float | None
    """The plain engine scored its own token higher than the edge's by this; None if the edge's
    token is not among the likeliest."""

    edge_gap: float | None
    """The edge scored its own token higher than the plain one by this, if that is known."""

    step: float

    @property
    def near_tie(self) -> bool:
        """True if one step of rounding in each of the two logits explains the difference."""
        known = [gap for gap in (self.plain_gap, self.edge_gap) if gap is not None]
        return bool(known) and max(known) <= 2 * self.step


def divergence(plain: Scores, edge: Scores, noise: Noise) -> Divergence | None:
    """Return where two answers differ first; None if nowhere. An answer's end counts as b""."""
    pairs = zip(plain, edge, strict=False)
    same = next((i for i, (a, b) in enumerate(pairs) if a.piece != b.piece), None)
    position = min(len(plain), len(edge)) if same is None else same
    if position == len(plain) == len(edge):
        return None
    ours, theirs = plain[position : position + 1], edge[position : position + 1]
    a, b = (rows[0].piece if rows else b"" for rows in (ours, theirs))
    lead = noise(position, a) - noise(position, b)
    gaps = _gap(ours, a, b, lead), _gap(theirs, b, a, -lead)
    return Divergence(position, _text(a), _text(b), *gaps, (*ours, *theirs)[0].step)


def _text(piece: bytes) -> str:
    return piece.decode("utf-8", "backslashreplace")


def _gap(row: Scores, own: bytes, other: bytes, lead: float) -> float | None:
    if not row:
        return None
    known = row[0].of(own), row[0].of(other)
    return None if known[0] is None or known[1] is None else known[0] - known[1] + lead
