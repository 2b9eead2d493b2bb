"""What no honest edge sends is rejected by name, and changes nothing."""

from __future__ import annotations

import pytest

from picospec.speculation.distributions import Q_SCALE
from picospec.speculation.messages import Draft, Pushed, Recovered, Redraw, RemoteProtocolError
from picospec.speculation.verify_session import VerifyingSession
from tests.speculation.verifiers import V, rejecting, session, state

DISHONEST: dict[str, tuple[VerifyingSession, Pushed, str]] = {
    "no tokens": (session(), Draft(0, 0, 0, ()), "Draft.tokens"),
    "not a token": (session(), Draft(0, 0, 0, (1, V)), "Draft.tokens"),
    "behind the prompt": (session(), Draft(0, 0, 1, (1,)), "Draft.behind"),
    "a gap to the text": (session(), Draft(0, 2, 1, (1,)), "Draft.behind"),
    "too far ahead": (session(), Draft(0, 0, 0, (1,) * 9), "Draft.start"),
    "weights in coupled": (session(), Draft(0, 0, 0, (1,), (5,)), "Draft.q"),
    "no weights in separate": (session("separate"), Draft(0, 0, 0, (1,)), "Draft.q"),
    "a weight too few": (session("separate"), Draft(0, 0, 0, (1, 2), (5,)), "Draft.q"),
    "a weight too many": (session("separate"), Draft(0, 0, 0, (1,), (5, 5)), "Draft.q"),
    "a weight of 0": (session("separate"), Draft(0, 0, 0, (1,), (0,)), "Draft.q"),
    "a weight over 1": (session("separate"), Draft(0, 0, 0, (1,), (Q_SCALE + 1,)), "Draft.q"),
    "nothing rejected": (session("separate"), Recovered(1, 0, 2), "Recovered.position"),
    "the rejected token again": (rejecting(), Recovered(1, 0, 1), "Recovered.token"),
    "impossible in p": (rejecting(), Recovered(1, 0, 4), "Recovered.token"),
    "beyond its place": (rejecting(), Recovered(1, 1, 2), "Recovered.position"),
    "over the text": (rejecting(7), Recovered(1, 0, 8), "Recovered.position"),
    "recovered in coupled": (session(), Recovered(1, 0, 2), "Recovered"),
    "a redraw in coupled": (session(), Redraw(0, 0, 1), "Redraw"),
    "drafts beyond the token owed": (rejecting(), Draft(1, 2, 0, (5,), (9,)), "Draft.behind"),
}


@pytest.mark.parametrize(("verifier", "lie", "field"), DISHONEST.values(), ids=DISHONEST)
def test_what_no_honest_edge_sends_is_rejected_by_field_and_changes_nothing(
    verifier: VerifyingSession, lie: Pushed, field: str
) -> None:
    before = state(verifier)

    with pytest.raises(RemoteProtocolError, match=f"^{field}: "):
        verifier.receive(lie)

    assert state(verifier) == before
