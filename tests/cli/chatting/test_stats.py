"""One line about a running answer, from what its stream tells."""

from __future__ import annotations

from collections.abc import Iterator

from picospec.cli.chat_client import Chunk, Progress, Speculation


def progress(*moments: float) -> Progress:
    clock: Iterator[float] = iter(moments)
    return Progress(lambda: next(clock))


def text(**counts: int) -> Chunk:
    return Chunk("x", Speculation(tokens=dict(counts)))


def event(name: str, **fields: object) -> Chunk:
    return Chunk("", Speculation(name, **fields))  # type: ignore[arg-type]


def test_the_speed_is_that_of_the_tokens_after_the_first_ones() -> None:
    line = progress(10.0, 11.0, 12.0)

    line.add(text(target=1))
    line.add(text(draft=3, target=1))
    line.add(text(draft=6))

    assert str(line) == "5.0 tokens/s"


def test_acceptance_and_the_round_trip_come_from_events() -> None:
    line = progress()

    line.add(event("pass", rows=5, accepted=2))
    line.add(event("link", rtt_ms=12.4))
    line.add(event("pass", rows=1, accepted=0))

    assert str(line) == "50% of drafts accepted · RTT 12 ms"


def test_the_totals_are_what_counts_in_the_end() -> None:
    line = progress()

    line.add(event("pass", rows=5, accepted=2))
    line.add(event("totals", drafted=8, accepted=6, rtt_ms=None))

    assert str(line) == "75% of drafts accepted"


def test_of_a_service_that_tells_nothing_nothing_is_said() -> None:
    line = progress()

    line.add(Chunk("x"))

    assert str(line) == ""
