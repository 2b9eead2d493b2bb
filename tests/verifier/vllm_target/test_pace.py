"""The bench's commands that start vLLM work on tiny settings. No time is asserted."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from picospec.bench.__main__ import app
from picospec.bench.data.results import load
from picospec.bench.pace.loads import Found
from picospec.bench.pace.script import said

pytest.importorskip("vllm")

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("default")]


def lines(out: Path, *arguments: str) -> dict[str, dict[str, float]]:
    """Run a command of the bench; return the figures of its arms."""
    python = ("--verifier-python", sys.executable)
    where = ("--json", str(out / "out.json"), "--tokens", "24", "--turns", "3", *python)
    result = CliRunner().invoke(app, [*arguments, *where])
    assert result.exit_code == 0, (result.output, result.exception)
    return {f"{line.load['arm']}": line.figures for line in load(out / "out.json", Found).lines}


def test_the_stand_in_accepts_the_scripts_draft_tokens_up_to_the_first_other() -> None:
    from picospec.bench.pace.standin import StandInWorker, _Text

    worker = StandInWorker.__new__(StandInWorker)
    worker._texts = {"a": _Text("1,2", known=4, computed=4)}
    right = [said("1,2", place) for place in (5, 6, 7)]

    def sampled(draft: list[int], rows: int) -> list[int]:
        counts = {"a": rows}
        step = SimpleNamespace(
            num_scheduled_tokens=counts, scheduled_spec_decode_tokens={"a": draft}
        )
        return worker._sampled("a", step)

    assert sampled([], 1) == right[:1]
    assert sampled(right[:2], 3) == right
    assert sampled([right[0], 0], 3) == right[:2]
    worker._texts = {"a": _Text("1,2", known=9, computed=4)}
    assert sampled([], 4) == []


def test_the_stand_in_answers_by_the_script_with_and_without_the_plugin(tmp_path: Path) -> None:
    arms = "stock,plugin,sessions,useless"

    found = lines(
        tmp_path, "standin", "--passes", "12", "--clients", "2", "--rtt", "2", "--arms", arms
    )

    assert [*found] == arms.split(",")
    assert all(each["known text"] == 1.0 for each in found.values())
    assert found["sessions"]["passes a token"] < 0.8 < found["useless"]["passes a token"] <= 1.0
    assert found["sessions"]["simulated, over plain"] > 1.0
    assert all(each.keys() >= {"API, cores", "engine, cores"} for each in found.values())


def test_one_vllm_is_loaded_with_plain_requests_and_sessions(tmp_path: Path) -> None:
    found = lines(tmp_path, "host", "--parts", "vllm", "--vllm-clients", "2")

    assert [*found] == ["plugin", "sessions", "mixed", "useless"]
    assert found["sessions"]["passes a token"] < 1.0
    assert "worker, cores" in found["plugin"]
