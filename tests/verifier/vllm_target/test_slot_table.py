"""Which session has which request, and what is remembered of sessions that ended."""

from __future__ import annotations

from picospec.speculation.protocol.messages import Finish, Limits, Open, Sampling
from picospec.speculation.sampling.logit_settings import LogitSettings
from picospec.speculation.verifying.session import VerifyingSession
from picospec.verifier.vllm_target.admission import Admission
from picospec.verifier.vllm_target.core.session_slot import REMEMBERED, SessionSlot, SlotTable


def slot(name: str) -> SessionSlot:
    request = Open("m", "v", (), Sampling(), 0, 9, ())
    made = SessionSlot(
        Admission(name, request, 1, Limits(), LogitSettings(), 10),
        VerifyingSession(request, Limits(), vocabulary_size=10),
    )
    made.send([Finish("stop"), Finish("length")])
    return made


def test_a_request_has_a_slot_until_it_is_removed() -> None:
    table, own = SlotTable(), slot("s")

    table.add("r", own)

    assert (len(table), table.of("r"), table.request_of("s")) == (1, own, "r")
    assert table.remove("r") is own
    assert (len(table), table.of("r"), table.request_of("s")) == (0, None, None)
    assert table.remove("r") is None


def test_frames_can_be_asked_for_while_a_session_runs_and_a_while_after() -> None:
    table, own = SlotTable(), slot("s")
    table.add("r", own)

    assert table.recall("s", 1) == own.frames[1:]
    table.remove("r")

    assert table.recall("s", 0) == own.frames
    assert table.recall("unknown", 0) == []


def test_no_more_ended_sessions_are_remembered_than_it_says() -> None:
    table = SlotTable()

    for number in range(REMEMBERED + 1):
        table.add(f"r{number}", slot(f"s{number}"))
        table.remove(f"r{number}")

    assert table.recall("s0", 0) == []
    assert table.recall("s1", 0) != []
