"""A session inside the core, without vLLM: what it owes, begins, sends and keeps."""

from __future__ import annotations

from itertools import repeat
from math import inf
from typing import Any

import numpy as np
import pytest

from speculation.coupled import Coupled
from speculation.distributions import Distribution
from speculation.judge import Judgement, Rejection
from speculation.logit_settings import LogitSettings
from speculation.messages import (
    Commit,
    Draft,
    Finish,
    Message,
    Open,
    Pushed,
    Recovered,
    Sampling,
)
from speculation.model_facts import Limits
from speculation.noise import noise_index
from speculation.separate import Separate
from speculation.verify_machine import PassPlan, Verdict, VerifyMachine
from verifier.vllm_target.core.slot import SessionSlot
from verifier.vllm_target.ipc_messages import Admission
from verifier.vllm_target.packing import unpacked
from verifier.vllm_target.verify_request import VerifyRequest

PROMPT_TOKENS = 10
PROMPT = [7, 8] * 5
NONE = LogitSettings()
ROWS = 3
"""Of every step."""


class Core:
    """One session's slot and machine, driven as the scheduler does."""

    def __init__(self, asked: LogitSettings = NONE, **fields: Any) -> None:
        settings: dict[str, Any] = {"seed": 9, "max_tokens": 20, "stop_tokens": (0,)}
        request = Open("m", "v", tuple(PROMPT), Sampling(), **(settings | fields))
        admission = Admission("s", request, PROMPT_TOKENS, Limits(4, 32), asked, 1000)
        self.machine = VerifyMachine(repeat(0.5))
        self.machine.open("s", request, admission.limits, vocabulary_size=1000, now=0.0)
        self.slot = SessionSlot(admission, self.machine.session("s"), PROMPT)
        self.known = PROMPT_TOKENS + len(request.committed)
        """Tokens with which vLLM's request begins."""

        self._plan = PassPlan({}, 1.0)

    def receive(self, message: Pushed, arrived: float = 1.0) -> None:
        self.slot.send(self.machine.received("s", message, arrived=arrived))

    def begin(self, generated: int, injected: int) -> VerifyRequest:
        """Begin a step. generated: tokens vLLM knows of. injected: our tokens in the step."""
        missing = self.slot.missing(self.known + generated)
        begins = self.slot.may_begin(missing, injected)
        self._plan = self.machine.begin({"s": injected - len(missing)} if begins else {}, 1.0)
        return self.slot.verify_request(self._plan.passes.get("s"), missing)

    def run(self, *tokens: int, accepted: int = 0, rejection: Rejection | None = None) -> None:
        """End the step's pass."""
        verdicts = {"s": Verdict(Judgement(tokens, accepted, rejection))}
        judged = len(self._plan.passes["s"].draft)
        down = self.machine.ran(self._plan, verdicts, 2.0, None)["s"]
        self.slot.send(down, judged=judged, rows=ROWS)

    def offered(self) -> tuple[int, ...] | None:
        """Return the draft tokens of the pass that should start; None: none should."""
        return self.machine.offer(["s"], 3.0, rows=64).start.get("s")

    @property
    def sent(self) -> list[Message]:
        return [unpacked(each.frame) for each in self.slot.frames]


def rejected(token: int, *allowed: int) -> Rejection:
    distribution = Distribution(np.array(allowed), np.full(len(allowed), 1.0 / len(allowed)))
    return Rejection(token, distribution)


def test_what_a_session_begins_with_is_vllms_prompt_and_its_own_text() -> None:
    core = Core(LogitSettings(frequency_penalty=0.5), committed=(3, 4, 4))

    request = core.begin(generated=0, injected=0)
    core.run(5)

    assert request.known == 0  # vLLM knows all three
    assert request.rule == Coupled(9, noise_index(PROMPT_TOKENS, 3))
    assert request.adjustment is not None
    assert request.adjustment.position == 3
    assert core.slot.missing(core.known + 1) == ()
    assert [core.slot.take_initial_output(), core.slot.take_initial_output()] == [[3, 4, 4], []]
    assert core.sent[0] == Commit(0, 3, (5,), pass_s=1.0, queue_s=1.0)


def test_an_admission_survives_its_journey() -> None:
    request = Open("m", "v", (), Sampling(0.5, 0.1, 3, 0.9), 2**62, 7, (1, 2), "separate")
    settings = LogitSettings(1.5, logit_bias={5: -1.5})
    admission = Admission("s", request, 44, Limits(3, 9), settings, 99)

    assert Admission.unpack(admission.pack()) == admission


@pytest.mark.parametrize(("injected", "judged"), [(0, ()), (2, (5, 6))])
def test_a_step_judges_the_draft_tokens_that_it_has_rows_for_even_with_fill_never(
    injected: int, judged: tuple[int, ...]
) -> None:
    core = Core(fill="never")
    core.receive(Draft(1, 0, 0, (5, 6, 7)))

    assert core.begin(0, injected).draft == judged


def test_a_request_names_the_place_of_its_first_row() -> None:
    core = Core()
    core.begin(0, 0)
    core.run(5)

    request = core.begin(1, 0)

    assert request.rule == Coupled(9, noise_index(PROMPT_TOKENS, 1))
    assert request.draft == ()


def test_a_request_without_settings_carries_no_text() -> None:
    assert Core().begin(0, 0).adjustment is None


def test_a_request_carries_what_the_committed_text_changes() -> None:
    core = Core(LogitSettings(repetition_penalty=1.5), max_tokens=100)
    core.begin(0, 0)
    core.run(4)
    core.begin(1, 0)
    core.run(7)

    adjustment = core.begin(2, 0).adjustment

    assert adjustment is not None
    assert adjustment.position == 2
    seen = adjustment.seen
    assert seen is not None
    assert dict(zip(seen.tokens, seen.counts, strict=True)) == {4: 1.0, 7: 1.0, 8: 0.0}


def test_a_recovered_token_is_owed_until_the_next_step() -> None:
    core = Core(judge="separate")
    core.machine.latency.observe(1, 0.01)
    core.begin(0, 0)
    core.run(5)
    core.receive(Draft(1, 1, 0, (6, 7), q=(100, 100)))
    core.begin(1, 2)
    core.run(6, accepted=1, rejection=rejected(7, 8, 9))
    assert core.machine.wait_s(["s"], 3.0) == inf
    sent = len(core.sent)

    core.receive(Recovered(2, 2, 8))
    core.receive(Draft(2, 3, 0, (3,), q=(50,)))

    assert len(core.sent) == sent + 1
    assert core.slot.missing(core.known + 2) == (8,)
    assert core.offered() == (3,)
    request = core.begin(2, 2)
    assert (request.known, request.draft) == (1, (8, 3))
    assert request.rule == Separate((50,), (0.5, 0.5))
    assert core.slot.missing(core.known + 3) == ()


def test_a_step_that_cannot_tell_vllm_what_is_owed_begins_no_pass() -> None:
    core = Core(judge="separate")
    core.begin(0, 0)
    core.run(rejection=rejected(7, 8, 9))
    core.receive(Recovered(2, 0, 8))

    request = core.begin(0, 0)

    assert request.rule is None
    assert core.begin(0, 1).draft == (8,)


def test_a_step_while_a_recovered_token_is_awaited_generates_nothing() -> None:
    core = Core(judge="separate")
    core.begin(0, 0)
    core.run(rejection=rejected(7, 8, 9))

    request = core.begin(0, 0)

    assert request.rule is None
    assert core.offered() is None


def test_only_the_first_frame_of_a_pass_tells_what_it_took() -> None:
    core = Core(max_tokens=2)
    core.receive(Draft(1, 0, 0, (5,)))
    core.begin(0, 1)
    core.run(5, 6, accepted=1)

    assert [type(message) for message in core.sent] == [Commit, Finish]
    assert [(each.judged, each.rows) for each in core.slot.frames] == [(1, ROWS), (0, 0)]


def test_a_session_is_over_when_it_has_finished_or_its_edge_was_at_fault() -> None:
    finished, faulty = Core(max_tokens=1), Core()
    assert not finished.slot.over

    finished.begin(0, 0)
    finished.run(5)
    faulty.slot.error = "Draft.tokens: empty"

    assert finished.slot.over
    assert faulty.slot.over
