"""`bench host` on tiny settings: each part has its figures. No time is asserted."""

from __future__ import annotations

from pathlib import Path

from typer.testing import CliRunner

from picospec.bench.__main__ import app
from picospec.bench.data.results import load
from picospec.bench.pace.command import SERVICE
from picospec.bench.pace.loads import Found, Turn, figures
from picospec.bench.pace.machine import PART, Fleet


def test_the_machine_and_the_service_are_measured_at_every_number_of_sessions(
    tmp_path: Path,
) -> None:
    out = tmp_path / "out.json"
    sizes = ["--machine-sessions", "1,3", "--sessions", "1,2", "--tokens", "24"]

    result = CliRunner().invoke(
        app, ["host", "--json", str(out), *sizes, "--steps", "3", "--turns", "1", "--together"]
    )

    assert result.exit_code == 0, (result.output, result.exception)
    found = load(out, Found)
    counts = [(line.part, line.load["sessions"]) for line in found.lines]
    assert counts == [(PART, 1), (PART, 3), (SERVICE, 1), (SERVICE, 2)]
    service = found.lines[-1].figures
    assert service["known text"] == 1.0
    assert service["passes a token"] < 1.0
    assert service["of API the fake target, us a token"] < service["API, us a token"]
    assert "granian" in found.versions
    assert f"{PART}\n\n| sessions |" in result.output


def test_the_machine_judges_draft_tokens_in_every_step() -> None:
    fleet = Fleet(4)

    tokens = [fleet.step() for _ in range(40)]

    assert sum(tokens) > 2 * 4 * 40  # more than two tokens a session and step
    assert {"wait_s", "offer", "begin", "ran", "received"} == fleet.timed.spent_s.keys()


def test_arms_are_compared_turn_by_turn_with_the_first() -> None:
    def turns(*seconds: float) -> list[Turn]:
        return [Turn(100, 50, 100, s, {"API": 0.01}) for s in seconds]

    found = figures(turns(1.0, 2.0), turns(2.0, 4.0))

    assert found["over the first"] == found["of it, low"] == found["of it, high"] == 2.0
    assert found["tokens/s"] == 200 / 3
    assert found["API, us a token"] == 100.0
