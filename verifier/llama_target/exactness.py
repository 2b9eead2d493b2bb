"""Finds at the start how passes of several rows round here, by teacher forcing on a real text.

A device computes one row by other kernels than many, and sums in another order. So a row of a
pass may differ in its last bits from the same row in a pass of its own, and a text may part
where the two best tokens are nearly equal. The test decodes a text row by row, and again in
passes of 2, 3 ... rows, always with the text's own tokens. It finds

* up to how many rows each row has the bits of a row alone,
* how far the best tokens lay apart where the argmax changed: more than a near-tie is an error.

`exact = strict` needs equal bits. Passes then have at most as many rows as are equal; or, if
those are too few, each pass is padded to one number of rows, prompts and plain passes too, so
that one set of kernels computes everything. The test shows for each whether it is equal.

llama.cpp's attention reads cells in steps of 256, as many as the last row of a pass needs. So a
padded pass never lies on both sides of such a border: otherwise a row before it would be
computed over more cells in one pass than in another. Near a border a pass begins earlier, and
decodes some tokens again. The test crosses one border, and reads no longer text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Final

import numpy as np

from local_models.errors import CannotOpen
from speculation.distributions import Logits

TEXT: Final = """The sea covers about seven tenths of the planet. Its water is salty, because
rivers have carried minerals into it for a very long time, and only the water evaporates again.
Sailors once found their way by the stars: the height of the pole star above the horizon is the
latitude, but the longitude needs a clock that keeps the time of the port. Harrison's fourth
clock lost five seconds on the way to Jamaica in 1761.

    def longitude(noon_here: float, noon_there: float) -> float:
        \"\"\"Return degrees; the earth turns by 15 an hour.\"\"\"
        return (noon_here - noon_there) * 15

Tides come twice a day, about fifty minutes later each day, as the moon does. In narrow bays
they rise by more than ten metres; in the Baltic one hardly sees them. A wave in deep water
runs the faster the longer it is: one of 100 metres takes 8 seconds from crest to crest, and
one of 400 metres 16. Near the shore it slows down, grows steeper, and breaks. What the wind
has raised in a night can travel for a week: a swell on the coast of California may have
begun south of New Zealand, and the surfers who wait for it read the weather of another
ocean. "It arrives," one of them wrote, "on a morning without any wind at all, as if the sea
had remembered something."
"""

NEAR: Final = 0.5
"""Two logits that differ by no more are a near-tie. With weights and sums of 16 bits logits
differ by some hundredths; a kernel that is wrong changes them by several."""

CELLS: Final = 256
"""llama.cpp enlarges the part of a cache that attention reads in steps of as many tokens."""

POSITIONS: Final = 48
"""Passes of each number of rows decode as many tokens. Weights in 8 bits hide a difference at
most places, and one that shows in the KV changes all rows after it: a few rows are too few."""

Decode = Callable[[int, Sequence[int]], Sequence[Logits]]
"""decode(start, tokens) decodes tokens from position `start` on, in one pass, after removing
what was there; it returns a copy of the logits of each row, float32[V]."""


@dataclass(frozen=True, slots=True)
class Shape:
    """Passes are exact in this shape: at most `rows` rows, of one session; if `is_padded`,
    always as many, prompts included."""

    rows: int
    is_padded: bool


@dataclass(frozen=True, slots=True)
class Rounding:
    """The findings of the test. Logits are in nats."""

    equal_rows: int
    """Passes up to this many rows are equal to passes of one row, bit by bit."""

    tested_rows: int
    changed_argmaxes: int
    widest_gap: float
    """Where the argmax changed, the best two tokens lay apart by at most so much."""

    widest_difference: float
    """A logit differed by at most so much."""

    def log_fields(self) -> dict[str, float]:
        """Return the fields for a log and for /status."""
        return {name: round(value, 6) for name, value in asdict(self).items()}


def rounding(decode: Decode, tokens: Sequence[int], rows: int) -> Rounding:
    """Compare passes of 2..rows rows with passes of one. tokens: a text, whose last POSITIONS
    tokens are decoded again and again. Raises CannotOpen if a kernel is wrong."""
    alone = _forced(decode, tokens, 1)
    equal, changes, gap, difference = 1, 0, 0.0, 0.0
    for count in range(2, rows + 1):
        together = _forced(decode, tokens, count)
        if equal == count - 1 and _are_equal(alone, together):
            equal = count
        for a, b in zip(alone, together, strict=True):
            best, other = int(a.argmax()), int(b.argmax())
            changes += best != other
            gap = max(gap, float(a[best] - a[other]))
            difference = max(difference, float(np.abs(a - b).max()))
    if gap > NEAR:
        raise CannotOpen(
            f"self-test: in a pass of several rows another token is the best one by {gap:.2f}:"
            " a kernel of this device is wrong (gpu_layers = 0 does without it)"
        )
    return Rounding(equal, rows, changes, gap, difference)


def exact_shape(decode: Decode, tokens: Sequence[int], rows: int, found: Rounding) -> Shape:
    """Return the shape in which passes are exact: for `rows` rows, or else for fewer. Raises
    CannotOpen if there is none."""
    if found.equal_rows >= rows:
        return Shape(rows, is_padded=False)
    alone = _forced(decode, tokens, 1, rows)
    several = (_forced(decode, tokens, count, rows) for count in (2, rows // 2 + 1, rows))
    if all(_are_equal(alone, each) for each in several):
        return Shape(rows, is_padded=True)
    if found.equal_rows > 1:
        return Shape(found.equal_rows, is_padded=False)
    raise CannotOpen(
        'exact = "strict": on this device two rows of a pass already round differently from'
        f' one, and so do rows of passes padded to {rows}; exact = "near" is what it can do'
    )


def check_rollback(decode: Decode, tokens: Sequence[int], rows: int) -> None:
    """Check that a pass of `rows` rows can be taken back by one token, and by all but one.
    tokens: rows + 1 at least. Raises CannotOpen if other logits follow than without it."""
    right = decode(1, tokens[1 : rows + 1])
    for back in {1, rows - 1}:
        kept = rows - back
        others = [tokens[0]] * back
        decode(1, [*tokens[1 : kept + 1], *others])
        (row,) = decode(1 + kept, [tokens[1 + kept]])
        if np.abs(row - right[kept]).max() > NEAR:
            raise CannotOpen(
                f"self-test: after {back} rejected draft tokens llama.cpp does not take the"
                " recurrent layers of this model back to the right state"
            )


def _forced(
    decode: Decode, tokens: Sequence[int], count: int, padded_rows: int = 0
) -> list[Logits]:
    """Return the logits after each of the last POSITIONS tokens, decoded `count` a pass."""
    rows = list[Logits]()
    for start in range(max(1, len(tokens) - POSITIONS), len(tokens), count):
        end = min(start + count, len(tokens))
        if not padded_rows:
            rows += decode(start, tokens[start:end])
            continue
        for each in windows(start, end, padded_rows):
            decoded = decode(each.begin, padded(tokens[each.begin : each.end], padded_rows))
            rows += decoded[each.first - each.begin : each.end - each.begin]
    return rows


def _are_equal(rows: Sequence[Logits], others: Sequence[Logits]) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(rows, others, strict=True))


@dataclass(frozen=True, slots=True)
class Window:
    """A padded pass: it begins at `begin`, and its rows first..end - 1 are wanted."""

    begin: int
    first: int
    end: int


def windows(start: int, end: int, rows: int) -> list[Window]:
    """Return the padded passes that compute the positions start..end - 1, at most `rows` of
    them. None lies on both sides of a multiple of CELLS."""
    border = (start // CELLS + 1) * CELLS
    first = Window(min(start, border - rows), start, min(end, border))
    return [first] if end <= border else [first, Window(border, border, end)]


def padded(tokens: Sequence[int], rows: int) -> Sequence[int]:
    """Return the tokens, and the last one again and again, up to `rows` tokens."""
    return [*tokens, *[tokens[-1]] * (rows - len(tokens))]


def sample(tokens: Sequence[int], context_tokens: int) -> Sequence[int]:
    """Return the part of a text that the test reads: its last tokens lie around CELLS, if text
    and context are long enough."""
    return tokens[: min(CELLS + POSITIONS // 2, context_tokens)]
