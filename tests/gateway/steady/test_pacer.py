"""A Pacer shows the tokens of a burst one after another, and none later than the next burst."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from picospec.gateway.output.stream import MAX_DELAY_S, Pacer

GAPS_S = st.floats(0.0, 5.0)
SHOWS = st.lists(st.booleans(), min_size=1, max_size=5)
BURSTS = st.lists(st.tuples(GAPS_S, SHOWS), min_size=1, max_size=6)

Bursts = list[tuple[float, list[bool]]]
"""Return of each burst the time since the last one, and which of its items show something."""

Item = tuple[int, int, bool]
"""Its burst, its place in that, and whether it shows."""


def paced(bursts: Bursts) -> tuple[list[float], dict[Item, float]]:
    """Return when each burst arrived, and when each item was shown, in that order."""
    pacer = Pacer[Item](lambda item: item[2])
    now, arrivals, shown = 0.0, list[float](), dict[Item, float]()
    for burst, (gap_s, shows) in enumerate(bursts):
        now += gap_s
        while (due_s := pacer.due_s) is not None and due_s < now:
            due = pacer.due(due_s)
            assert due
            shown |= dict.fromkeys(due, due_s)
        items = [(burst, place, shown) for place, shown in enumerate(shows)]
        shown |= dict.fromkeys(pacer.add(items, now), now)
        arrivals.append(now)
    shown |= dict.fromkeys(pacer.flush(), now)
    assert pacer.due_s is None
    return arrivals, shown


def steady(interval_s: float, tokens: int, bursts: int = 4) -> list[float]:
    """Return when tokens are shown of bursts of one size that come at one pace."""
    return list(paced([(interval_s, [True] * tokens)] * bursts)[1].values())


@given(BURSTS)
def test_every_item_comes_out_once_and_in_order(bursts: Bursts) -> None:
    _, shown = paced(bursts)

    items = [(b, p, s) for b, (_, shows) in enumerate(bursts) for p, s in enumerate(shows)]
    assert list(shown) == items
    assert list(shown.values()) == sorted(shown.values())


@given(BURSTS)
def test_no_item_is_earlier_than_it_came_or_later_than_the_next_burst(bursts: Bursts) -> None:
    arrivals, shown = paced(bursts)

    for (burst, _, _), at_s in shown.items():
        later = [i for i in range(burst + 1, len(bursts)) if any(bursts[i][1])]
        until_s = arrivals[later[0]] if later else arrivals[-1]
        assert arrivals[burst] <= at_s <= until_s


@given(BURSTS)
def test_the_first_of_a_burst_waits_for_nothing(bursts: Bursts) -> None:
    arrivals, shown = paced(bursts)

    for burst, (_, shows) in enumerate(bursts):
        if True in shows:
            assert shown[burst, shows.index(True), True] == arrivals[burst]


@given(BURSTS)
def test_no_item_is_held_for_longer_than_the_limit(bursts: Bursts) -> None:
    arrivals, shown = paced(bursts)

    for (burst, _, shows), at_s in shown.items():
        if shows:
            assert at_s - arrivals[burst] <= MAX_DELAY_S


@given(st.floats(0.01, MAX_DELAY_S), st.integers(2, 8))
def test_at_an_even_pace_tokens_are_evenly_spaced(interval_s: float, tokens: int) -> None:
    shown = steady(interval_s, tokens)

    gaps_s = [later - sooner for sooner, later in pairwise(shown)]
    assert gaps_s[: tokens - 1] == [0.0] * (tokens - 1)  # no interval is known yet
    assert gaps_s[tokens : 3 * tokens - 1] == pytest.approx(
        [interval_s / tokens] * (2 * tokens - 1)
    )


def test_a_burst_that_comes_early_takes_what_is_held_with_it() -> None:
    bursts = [(0.0, [True]), (0.4, [True] * 4), (0.15, [True] * 2)]

    shown = list(paced(bursts)[1].values())

    assert shown == pytest.approx([0.0, 0.4, 0.5, 0.55, 0.55, 0.55, 0.55])


def test_an_item_that_shows_nothing_takes_no_step() -> None:
    bursts = [(0.0, [True]), (0.4, [False, True, False, True, False]), (1.0, [True])]

    shown = list(paced(bursts)[1].values())

    assert shown == pytest.approx([0.0, 0.4, 0.4, 0.4, 0.6, 0.6, 1.4])


def test_what_shows_nothing_is_no_burst_and_keeps_its_place() -> None:
    pacer = Pacer[str](str.isupper)
    pacer.add(["A"], 0.0)
    assert pacer.add(["B", "C"], 1.0) == ["B"]

    assert pacer.add(["event"], 1.1) == []
    assert pacer.due_s == pytest.approx(1.5)
    assert pacer.due(1.5) == ["C", "event"]
    assert pacer.add(["another"], 1.6) == ["another"]
