"""What no honest edge sends is rejected by name, and changes nothing."""

from __future__ import annotations

import pytest

from picospec.speculation.protocol.errors import RemoteProtocolError
from picospec.speculation.protocol.messages import Draft
from picospec.speculation.sampling.distributions import Q_SCALE
from picospec.speculation.verifying.session import VerifyingSession
from tests.speculation.verify_sessions import V, session, state

DISHONEST: dict[str, tuple[VerifyingSession, Draft, str]] = {
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
}  # fmt: skip


@pytest.mark.parametrize(("verifier", "draft", "field"), DISHONEST.values(), ids=DISHONEST)
def test_a_dishonest_draft_is_rejected_by_field_and_changes_nothing(
    verifier: VerifyingSession, draft: Draft, field: str
) -> None:
    before = state(verifier)

    with pytest.raises(RemoteProtocolError, match=f"^{field}: "):
        verifier.receive(draft)

    after = state(verifier)
    assert repr(after) == repr(before)


def test_an_epoch_may_not_have_two_tokens_at_one_position() -> None:
    verifier = session()
    verifier.receive(Draft(0, 0, 0, (1, 2, 3)))

    with pytest.raises(RemoteProtocolError, match=r"Draft.tokens: position 1 has changed"):
        verifier.receive(Draft(0, 1, 1, (9,)))

    assert verifier.pending == 3
