"""The cores that each end gets."""

from __future__ import annotations

import pytest

from gateway.hosting.cores import Pins, parse_pins, share


@pytest.mark.parametrize(
    ("available", "pins"),
    [
        ({3}, Pins()),
        ({0, 1}, Pins(frozenset({0}), frozenset({1}))),
        ({2, 5, 7}, Pins(frozenset({2, 5}), frozenset({7}))),
    ],
)
def test_the_verifier_gets_the_lower_half_and_the_edge_the_rest(
    available: set[int], pins: Pins
) -> None:
    assert share(available) == pins


@pytest.mark.parametrize(
    ("text", "pins"),
    [
        ("none", Pins()),
        ("0:1", Pins(frozenset({0}), frozenset({1}))),
        ("0,2-3:1", Pins(frozenset({0, 2, 3}), frozenset({1}))),
        (":1", Pins(frozenset(), frozenset({1}))),
    ],
)
def test_pins_are_read_as_written(text: str, pins: Pins) -> None:
    assert parse_pins(text, range(4)) == pins


@pytest.mark.parametrize("text", ["0", "a:1", "0:1-", "-1:0", "0:9"])
def test_pins_of_another_form_are_an_error(text: str) -> None:
    with pytest.raises(ValueError, match=r"cores|pins"):
        parse_pins(text, range(4))
