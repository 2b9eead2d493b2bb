"""A session inside the core, without vLLM: what it owes, begins, says and keeps."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import repeat
from math import inf
from typing import Any

import numpy as np
import pytest

from speculation.protocol import wire
from speculation.protocol.errors import RemoteProtocolError
from speculation.protocol.messages import (
    Commit,
    Draft,
    Finish,
    Limits,
    Message,
    Open,
    Opened,
    Reject,
    Sampling,
)
from speculation.sampling.distributions import Distribution
from speculation.sampling.judging import Judgement, Rejection
from speculation.sampling.noise import place
from speculation.verifying.row_allocation import PassLatency
from verifier.vllm_target.admission import Admission
from verifier.vllm_target.core.session_slot import RECENT_FRAMES, Seat

PROMPT_TOKENS = 10


def seat(**fields: Any) -> Seat:
    settings: dict[str, Any] = {"seed": 9, "max_tokens": 20, "stop_tokens": (0,)}
    request = Open("m", "v", (), Sampling(), **(settings | fields))
    admission = Admission("s", request, PROMPT_TOKENS, Limits(4, 32), (), 1000)
    return Seat(Admission.unpack(admission.pack()), now=0.0)


def chance() -> Iterator[float]:
    return repeat(0.5)


def hear(seat: Seat, *messages: Message) -> bool:
    return seat.receive(b"".join(map(wire.encode, messages)), 1.0, chance())


def passed(
    seat: Seat, *tokens: int, accepted: int = 0, rejection: Rejection | None = None
) -> None:
    judgement = Judgement(tokens, accepted, rejection)
    seat.resolve(judgement, started=1.0, now=2.0, rows=3, logprobs=None, u=chance())


def said(seat: Seat) -> list[Message]:
    return [m for spoken in seat.frames for m in wire.Decoder().feed(spoken.frame)]


def rejection_of(token: int, *allowed: int) -> Rejection:
    distribution = Distribution(np.array(allowed), np.full(len(allowed), 1.0 / len(allowed)))
    return Rejection(token, distribution)


def test_an_admission_survives_its_journey() -> None:
    request = Open("m", "v", (), Sampling(0.5, 0.1, 3, 0.9), 2**62, 7, (1, 2), "separate")
    admission = Admission("s", request, 44, Limits(3, 9), ((5, -1.5),), 99)

    assert Admission.unpack(admission.pack()) == admission


def test_a_rehearsal_begins_nothing() -> None:
    session = seat()
    hear(session, Draft(1, 0, 0, (5, 6, 7)))

    assert session.rehearse(2) == (5, 6)
    assert session.rehearse(9) == (5, 6, 7)
    order = session.begin(0, 2, chance())
    assert order.draft == (5, 6)


def test_a_step_without_rows_for_drafts_judges_none_even_with_fill_never() -> None:
    session = seat(fill="never")
    hear(session, Draft(1, 0, 0, (5, 6, 7)))

    order = session.begin(0, 0, chance())

    assert order.draft == ()


def test_an_order_names_the_place_of_its_first_row() -> None:
    session = seat()
    session.begin(0, 0, chance())
    passed(session, 5)

    order = session.begin(1, 0, chance())

    assert order.at == place(PROMPT_TOKENS, 1)
    assert order.forced is None
    assert order.injected == 0


def test_a_forced_token_is_owed_until_the_next_step() -> None:
    session = seat(judge="separate")
    session.begin(0, 0, chance())
    passed(session, 5)
    hear(session, Draft(1, 1, 0, (6, 7), q=(100, 100)))
    session.begin(1, 2, chance())
    passed(session, 6, accepted=1, rejection=rejection_of(7, 8, 9))
    assert session.hold_s(3.0, 0.1) == inf

    spoke = hear(session, Draft(2, 2, 0, (8, 3), q=(50,), forced=True))

    assert spoke
    assert session.owed(2) == 8
    assert session.rehearse(4) == (3,)
    order = session.begin(2, 2, chance())
    assert (order.forced, order.draft, order.q) == (8, (3,), (50,))
    assert len(order.u) == 2
    assert order.injected == 2


@pytest.mark.parametrize(("arrived", "holds"), [(2.08, True), (2.3, False)])
def test_a_hold_goes_by_when_drafts_reached_the_host(arrived: float, holds: bool) -> None:
    session, times = seat(), PassLatency()
    times.saw(1, 0.3)
    hear(session, Draft(1, 0, 0, (9,)))
    session.begin(0, 1, chance())
    passed(session, 5)

    session.receive(wire.encode(Draft(2, 1, 0, (9,))), arrived, chance())
    session.begin(1, 1, chance())
    passed(session, 5)

    assert (session.hold_s(2.0, times) > 0.0) is holds


def test_a_step_that_cannot_tell_what_is_owed_begins_no_pass() -> None:
    session = seat(judge="separate")
    session.begin(0, 0, chance())
    passed(session, rejection=rejection_of(7, 8, 9))
    hear(session, Draft(2, 0, 0, (8,), q=(), forced=True))

    order = session.begin(0, 0, chance())

    assert order.silent
    assert order.forced == 8
    assert order.injected == 0
    assert not session.begin(1, 0, chance()).silent


def test_a_step_while_a_replacement_is_awaited_says_nothing() -> None:
    session = seat(judge="separate")
    session.begin(0, 0, chance())
    passed(session, rejection=rejection_of(7, 8, 9))

    order = session.begin(0, 0, chance())

    assert order.silent
    assert order.forced is None
    assert session.rehearse(4) == ()


def test_frames_are_numbered_and_the_latest_are_at_hand() -> None:
    session = seat(max_tokens=100)
    for token in range(1, 31):
        session.begin(token - 1, 0, chance())
        passed(session, token)

    first, frames = session.recent

    assert first == 30 - RECENT_FRAMES
    assert frames == session.frames[first:]
    assert [m.start for m in said(session) if isinstance(m, Commit)] == list(range(30))


def test_only_the_first_frame_of_a_pass_tells_what_it_took() -> None:
    session = seat(max_tokens=2)
    hear(session, Draft(1, 0, 0, (5,)))
    session.begin(0, 1, chance())
    passed(session, 5, 6, accepted=1)

    assert [type(message) for message in said(session)] == [Commit, Finish]
    assert [(spoken.judged, spoken.rows) for spoken in session.frames] == [(1, 3), (0, 0)]


def test_what_is_no_message_from_an_edge_is_refused() -> None:
    session = seat()

    with pytest.raises(RemoteProtocolError, match="Opened"):
        hear(session, Opened("x", Limits()))
    with pytest.raises(RemoteProtocolError, match="not a token"):
        hear(session, Draft(1, 0, 0, (1000,)))

    assert session.machine.pending == 0


def test_a_refusal_is_said_at_once_and_again_when_asked() -> None:
    session = seat(judge="separate")
    session.begin(0, 0, chance())
    passed(session, rejection=rejection_of(7, 8, 9))

    assert [type(message) for message in said(session)] == [Reject]
