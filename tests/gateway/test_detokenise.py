"""Deltas become what a client sees, token by token."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from gateway.detokenise import Detokeniser
from gateway.errors import EngineFault
from gateway.ports import Delta, TokenLogprob

END = 256


def detokeniser(stops: Sequence[str] = ()) -> Detokeniser:
    return Detokeniser(
        lambda token: bytes([token]) if token < END else b"",
        stop_tokens=frozenset({END}),
        stops=stops,
    )


def delta(data: bytes) -> Delta:
    return Delta(tuple(data), tuple(TokenLogprob(-1.0, ((b, -1.0),)) for b in data))


def test_a_stop_token_is_counted_and_not_shown() -> None:
    read = detokeniser().read(Delta((ord("a"), END), finish="stop"))

    assert (read.text, read.tokens, read.finish) == ("a", 2, "stop")


def test_a_stop_string_ends_the_choice_though_the_engine_ran_out_of_room() -> None:
    read = detokeniser(["b"]).read(Delta(tuple(b"abc"), finish="length"))

    assert (read.text, read.tokens, read.finish) == ("a", 2, "stop")


def test_log_probabilities_wait_for_the_text_of_their_token() -> None:
    choice = detokeniser(["stop"])

    first = choice.read(delta(b"a st"))
    second = choice.read(delta(b"\xc3"))
    third = choice.read(delta(b"\xa9"))

    assert [entry.piece for entry in first.entries] == [b"a", b" "]
    assert [entry.piece for entry in second.entries] == []
    assert [(entry.piece, entry.offset) for entry in third.entries] == [
        (b"s", 2),
        (b"t", 3),
        (b"\xc3", 4),
        (b"\xa9", 4),
    ]


def test_log_probabilities_of_a_stop_string_are_never_shown() -> None:
    choice = detokeniser(["st"])

    read = [choice.read(delta(b"as")), choice.read(delta(b"ty"))]

    assert [entry.piece for part in read for entry in part.entries] == [b"a"]
    assert read[1].finish == "stop"


def test_log_probabilities_for_some_tokens_only_are_the_engines_fault() -> None:
    incomplete = Delta((1, 2), (TokenLogprob(-1.0, ()),))

    with pytest.raises(EngineFault):
        detokeniser().read(incomplete)
