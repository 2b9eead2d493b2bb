"""What the timing of the judge rests on: steps that use every setting, and a comparison."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import pytest

pytest.importorskip("torch")

from picospec.bench.calibrate import kernels
from picospec.bench.calibrate.kernels import (
    CASES,
    STOP_TOKENS,
    counted,
    differing,
    judged,
    judged_at_once,
    measured,
    requests_of,
    step,
    timed_s,
)
from picospec.speculation.sampling.judging import Judgement
from picospec.verifier.vllm_target.worker import judging
from picospec.verifier.vllm_target.worker.judging import CANDIDATES
from picospec.verifier.vllm_target.worker.support import supports

COUPLED = [name for name, case in CASES.items() if case.judge == "coupled"]
SEPARATE = [name for name in CASES if name not in COUPLED]


@pytest.mark.parametrize("name", COUPLED)
def test_every_draft_token_of_the_step_is_accepted(name: str) -> None:
    logits = step(sessions=3, drafts=4, vocabulary=500)
    requests = requests_of(replace(CASES[name], grid=0.0), logits)

    found = judged(requests, logits)

    assert [judgement.accepted for judgement in found] == [4, 4, 4]


@pytest.mark.parametrize("name", SEPARATE)
def test_in_separate_some_draft_tokens_are_rejected(name: str) -> None:
    logits = step(sessions=6, drafts=4, vocabulary=500)

    found = judged(requests_of(CASES[name], logits), logits)

    assert sum(judgement.rejection is not None for judgement in found) > 0
    assert sum(judgement.accepted for judgement in found) > 0


def test_settings_of_a_step_change_its_tokens() -> None:
    logits = step(sessions=8, drafts=4, vocabulary=500)
    plain, penalised, biased = (
        [token for request in requests_of(CASES[name], logits) for token in request.draft]
        for name in ("T=0", "T=0, penalties", "T=0, bias, stop tokens barred")
    )

    assert plain != penalised
    assert set(biased) & set(range(6))
    assert not set(biased) & set(STOP_TOKENS)


def test_a_step_is_timed() -> None:
    logits = step(sessions=1, drafts=1, vocabulary=500)

    assert timed_s(requests_of(CASES["T=1"], logits), logits, repeats=1) > 0.0


@pytest.mark.parametrize("name", CASES)
def test_a_device_that_judges_as_a_cpu_does_is_right(name: str) -> None:
    cell, right = measured(CASES[name], step(3, 4, 3000), "cpu", repeats=1)

    assert right, cell


@pytest.mark.parametrize("name", CASES)
def test_a_negative_control_a_kernel_that_is_broken_on_the_device_is_noticed(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(kind: Any, logits: Any, columns: Any, count: int) -> Any:
        support, found = supports(kind, logits, columns, count)
        if count >= CANDIDATES:  # only the device's way begins with as many
            support = replace(support, tokens=(support.tokens + 1) % logits.shape[1])
        return support, found

    monkeypatch.setattr(judging, "supports", broken)
    cell, right = measured(CASES[name], step(3, 4, 500), "cpu", repeats=1)

    assert not right
    assert "differ" in cell


def test_differences_are_counted_one_by_one() -> None:
    logits = step(sessions=6, drafts=4, vocabulary=500)
    requests = requests_of(CASES["T=1, separate"], logits)
    rejecting = judged(requests, logits)
    others, _ = judged_at_once(requests, logits + 0.01 * step(6, 4, 500, seed=1))
    some = [Judgement((1, 2, 3), 2), Judgement((4,), 0)]

    assert differing(some, some) == 0
    assert differing(some, [Judgement((1, 9), 1), Judgement((4,), 0)]) == 2
    assert differing(rejecting, rejecting) == 0
    assert differing(rejecting, others) > 0


def test_waits_for_cuda_are_counted_without_the_notice_of_the_counter_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    notice = "Synchronization debug mode does not yet detect all synchronizing operations"
    monkeypatch.setattr(
        kernels.torch.cuda,
        "set_sync_debug_mode",
        lambda mode: warnings.warn(notice, stacklevel=1),
    )

    def waiting() -> list[Judgement]:
        for _ in range(2):
            warnings.warn("called a synchronizing CUDA operation (Triggered ...)", stacklevel=1)
        return []

    assert counted(waiting) == ([], 2)


def test_the_command_fails_where_a_judgement_differs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = {"device": "cpu", "sessions": "1,2", "drafts": 1, "vocabulary": "500", "repeats": 1}

    with pytest.raises(SystemExit) as ended:
        kernels.main(**small)  # type: ignore[arg-type]
    assert not ended.value.code
    assert "2 x 2 rows of 500" in capsys.readouterr().out

    monkeypatch.setattr(kernels, "differing", lambda some, others: 1)
    with pytest.raises(SystemExit) as ended:
        kernels.main(**small)  # type: ignore[arg-type]
    assert ended.value.code
    assert "differ" in capsys.readouterr().out
