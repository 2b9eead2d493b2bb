"""The whole bench on SmolLM2: it runs, keeps all, and every coupled arm generates the same."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from picospec.bench.__main__ import app
from picospec.bench.data.prompts import Prompt
from picospec.bench.data.results import Results, load
from picospec.bench.link import Conditions
from picospec.bench.run.command import Run
from picospec.bench.run.live_arms import parse
from picospec.bench.run.plan import Plan
from picospec.bench.run.services import ServicesPlan

ARMS = "cloud,picospec,sync:2,paper:2,colocated:2"
SMALL = {"PICOSPEC_EDGE__SLOTS": "1", "PICOSPEC_EDGE__CONTEXT_TOKENS": "512"}


@pytest.mark.models
async def test_every_arm_answers_every_question_with_clouds_words(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    prompts = [Prompt("a", "chat", "Name three colours.")]
    links = [Conditions(2.0), Conditions(5.0)]
    services = ServicesPlan(
        "smollm2",
        "smollm2",
        {},
        verifier_arguments=("--llama.slots", "2", "--llama.context-tokens", "512"),
        environment=SMALL,
    )

    await Run(Plan(parse(ARMS), prompts, links, (0.0,), tokens=6), services, out).go(
        Console(quiet=True)
    )

    found = load(out, Results)
    assert {(row.arm, row.rtt_ms) for row in found.rows} == {
        (arm.name, rtt_ms) for arm in parse(ARMS) for rtt_ms in (2.0, 5.0)
    }
    assert all(row.identical_to_cloud for row in found.rows)
    by_arm = {row.arm: row for row in found.rows if row.rtt_ms == 5.0}
    assert by_arm["cloud"].bytes_up == 0
    assert all(by_arm[arm.name].bytes_up > 0 for arm in parse(ARMS) if arm.edge)
    assert all(row.target_passes > 0 for row in found.rows)

    reported = CliRunner().invoke(app, ["report", "--no-plots", str(out)])
    assert reported.exit_code == 0
    assert "paper:2" in out.with_suffix(".md").read_text()
