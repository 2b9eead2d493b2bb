"""Any split of tokens shows the same text: never a stop string, never half a character."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.detokenise import Detokeniser
from gateway.ports import Delta
from gateway.stop_strings import StopStrings

LETTERS = st.text(alphabet="abé€😀", max_size=24)
STOPS = st.lists(st.text(alphabet="abé€", min_size=1, max_size=4), max_size=4)


def bytes_split(data: bytes, cuts: Sequence[int]) -> list[bytes]:
    ends = sorted({cut % (len(data) + 1) for cut in cuts} | {len(data)})
    return [data[a:b] for a, b in zip([0, *ends], ends, strict=False)]


def read(data: bytes, chunks: Sequence[bytes], stops: Sequence[str]) -> tuple[list[str], int]:
    """Return the shown texts and the counted tokens; tokens are bytes, `chunks` groups them."""
    detokeniser = Detokeniser(
        lambda token: bytes([token]), stop_tokens=frozenset(), stops=stops
    )
    shown, tokens = [], 0
    for chunk in [*chunks, None]:
        delta = Delta((), finish="length") if chunk is None else Delta(tuple(chunk))
        read_now = detokeniser.read(delta)
        shown.append(read_now.text)
        tokens += read_now.tokens
        if read_now.finish is not None:
            break
    return shown, tokens


def first_stop(text: str, stops: Sequence[str]) -> str:
    """Cut before the stop string that is complete first, by trying every end."""
    for end in range(len(text) + 1):
        starts = [end - len(stop) for stop in stops if text[:end].endswith(stop)]
        if starts:
            return text[: min(starts)]
    return text


@given(st.binary(max_size=24), st.lists(st.integers(0, 99)), STOPS)
def test_any_grouping_of_tokens_gives_the_same_text_and_usage(
    data: bytes, cuts: list[int], stops: list[str]
) -> None:
    shown, tokens = read(data, bytes_split(data, cuts), stops)
    whole, whole_tokens = read(data, [data], stops)

    assert "".join(shown) == "".join(whole)
    assert tokens == whole_tokens


@given(LETTERS, st.lists(st.integers(0, 99)), STOPS)
def test_the_text_ends_before_the_stop_string_that_is_complete_first(
    text: str, cuts: list[int], stops: list[str]
) -> None:
    data = text.encode()

    shown, _ = read(data, bytes_split(data, cuts), stops)

    assert "".join(shown) == first_stop(text, stops)


@given(LETTERS, STOPS)
def test_no_moment_shows_more_than_the_final_text(text: str, stops: list[str]) -> None:
    final = first_stop(text, stops)

    shown, _ = read(text.encode(), [bytes([byte]) for byte in text.encode()], stops)

    for count in range(len(shown) + 1):
        assert final.startswith("".join(shown[:count]))
    assert "\ufffd" not in "".join(shown)


@given(st.binary(max_size=24), st.lists(st.integers(0, 99)))
def test_bytes_that_are_no_text_decode_as_a_whole_would(data: bytes, cuts: list[int]) -> None:
    shown, _ = read(data, bytes_split(data, cuts), ())

    assert "".join(shown) == data.decode("utf-8", "replace")


@given(LETTERS)
def test_without_stop_strings_every_whole_character_is_shown_at_once(text: str) -> None:
    shown, _ = read(text.encode(), [character.encode() for character in text], ())

    assert shown == [*text, ""]


def test_half_a_character_at_the_end_becomes_a_replacement_character() -> None:
    shown, tokens = read(b"a\xe2\x82", [b"a\xe2\x82"], ())

    assert "".join(shown) == "a\ufffd"
    assert tokens == 3


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        StopStrings(["a", ""])
