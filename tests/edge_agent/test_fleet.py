"""Which verifier an answer is opened at, by what is known of all."""

from __future__ import annotations

import pytest

from picospec.edge_agent.link.uplink import Endpoint, Event, Fleet


def ready(number: int, rtt_s: float = 0.0, load: float = 0.0) -> Endpoint:
    return Endpoint(number, Event.IS_READY, rtt_s=rtt_s, load=load)


def test_the_nearest_that_is_not_busy_is_used() -> None:
    far, near, busy = ready(0, 0.09), ready(1, 0.02, load=0.1), ready(2, 0.01, load=1.0)
    fleet = Fleet([far, near, busy])

    assert fleet.choose("") is near
    near.note(Event.LOST)
    assert fleet.choose("") is far  # it is in use, and not much farther away
    far.identity = "another"
    assert fleet.choose("i") is busy
    assert fleet.choose("i", {busy}) is near


def test_one_that_speaks_another_version_opens_no_session_and_is_the_last_to_be_used() -> None:
    old, current = ready(0), ready(1, rtt_s=9.0)
    old.is_compatible = False
    fleet = Fleet([old, current])

    assert fleet.choose("") is current
    assert fleet.choose("", {current}) is None
    assert fleet.ranked("")[0] is current


def test_one_that_drains_is_not_ready_again_because_it_takes_a_draft() -> None:
    endpoint = ready(0)

    for event, is_ready in (
        (Event.DRAINS, False),
        (Event.ANSWERED, False),
        (Event.IS_READY, True),
        (Event.LOST, False),
        (Event.ANSWERED, True),
    ):
        endpoint.note(event)
        assert endpoint.is_ready is is_ready


def test_the_round_trip_is_smoothed() -> None:
    endpoint = Endpoint(0)

    endpoint.timed(0.8)
    endpoint.timed(0.0)

    assert endpoint.rtt_s == pytest.approx(0.7)
