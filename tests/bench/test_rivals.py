"""vLLM's own speculation as arms: what they lack is said at once, and each has an engine."""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Mapping
from io import StringIO
from itertools import groupby
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from rich.console import Console
from typer import Context
from typer.testing import CliRunner

from bench.__main__ import app
from bench.files import load
from bench.link import Conditions
from bench.prompts import Prompt, read
from bench.results import Results
from bench.run import stock_vllm
from bench.run.arms import parse
from bench.run.command import Plan, Run, stints, turns
from bench.run.rivals import Rival
from bench.run.services import ServicesPlan
from verifier.vllm_target.launching import flags

RIVALS = "cloud,picospec,cloud-vllm,cloud-ngram:3"
ENGINES = ["", "cloud-vllm", "cloud-ngram:3"]


def plan(arms: str, prompts: int, questions: int = 2, repeats: int = 1) -> Plan:
    asked = [Prompt(f"p{i}", "code", f"Say {i}.") for i in range(prompts)]
    links = [Conditions(1.0), Conditions(2.0)]
    return Plan(parse(arms), asked, links, repeats=repeats, questions_per_engine=questions)


def rival(name: str) -> Rival:
    found = Rival.parse(name)
    assert found
    return found


def test_vllm_is_told_the_method_and_the_number_of_tokens() -> None:
    ngram = rival("cloud-ngram:3").speculation("")
    draft = rival("cloud-draft:2").speculation("/models/small")

    assert (ngram["method"], ngram["num_speculative_tokens"]) == ("ngram", 3)
    assert draft == {
        "method": "draft_model", "model": "/models/small", "num_speculative_tokens": 2
    }  # fmt: skip
    assert rival("cloud-vllm").speculation("") == {}


def test_engines_take_turns_with_a_few_questions_and_the_last_one_goes_on() -> None:
    whole = plan(RIVALS, prompts=6, repeats=2)

    dealt = stints(whole)

    served = [stint[0].arm.engine for stint in dealt]
    assert served[:7] == [*ENGINES, *ENGINES[-2::-1], *ENGINES[1:]]
    assert {turn.arm.name for turn in dealt[0]} == {"cloud", "picospec"}
    assert [name for name, _ in groupby(turn.prompt.id for turn in dealt[0])] == ["p0", "p1"]
    each = Counter(map(repr, turns(whole)))  # nothing is asked twice or left out
    assert Counter(repr(turn) for stint in dealt for turn in stint) == each


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ("--families poetry", "poetry"),
        ("--pin 0", "VERIFIER:EDGE"),
        ("--arms cloud,cloud-ngram", "--target vllm"),
        ("--arms cloud,cloud-ngram --target vllm --temperatures 0,1", "temperature 0"),
        ("--arms cloud,cloud-draft --target vllm", "--cloud-draft-model"),
        ("--arms cloud,cloud-suffix --target vllm", "arctic-inference==0.1.1"),
    ],
)
def test_what_a_run_lacks_is_said_before_anything_starts(
    tmp_path: Path, arguments: str, named: str
) -> None:
    command = ["run", "--json", str(tmp_path / "o.json"), *arguments.split()]
    result = CliRunner().invoke(app, command, env={"COLUMNS": "999"})

    assert result.exit_code == 2
    assert named in result.output


def test_options_are_spelt_as_vllms_command_line_has_them() -> None:
    chosen = {"dtype": "bfloat16", "enforce_eager": True, "enable_lora": False,
              "max_model_len": 4096, "speculative_config": {"method": "ngram"}}  # fmt: skip

    assert list(flags(chosen)) == [
        "--dtype", "bfloat16", "--enforce-eager", "--no-enable-lora",
        "--max-model-len", "4096", "--speculative-config", '{"method": "ngram"}',
    ]  # fmt: skip


@pytest.mark.parametrize(("named", "left"), [("picospec", ""), ("other,picospec", "other")])
def test_stock_vllm_has_no_plugin_of_ours(
    named: str, left: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[Mapping[str, str]] = []
    monkeypatch.setenv("VLLM_PLUGINS", named)
    monkeypatch.setattr(os, "execve", lambda *of: started.append(of[2]))
    context = cast(Context, SimpleNamespace(args=[]))

    stock_vllm.main(context, "m", '{"method": "ngram"}', "127.0.0.1", 1)

    assert started[0]["VLLM_PLUGINS"] == left


@pytest.fixture
def services(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ServicesPlan:
    python, fake = tmp_path / "python", Path(__file__).with_name("fake_vllm.py")
    python.write_text(f'#!/bin/sh\nexec {sys.executable} {fake} "$@"\n')
    python.chmod(0o755)
    monkeypatch.setenv("FAKE_LOG", str(tmp_path / "log"))
    return ServicesPlan(
        "target", "", {}, "vllm", ("--vllm.dtype", "bfloat16"), str(python),
        cloud_draft_model="small",
    )  # fmt: skip


async def test_a_conversation_ends_where_the_context_does_and_the_next_one_begins(
    tmp_path: Path, services: ServicesPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_MESSAGES", "6")
    prompts = read(families=["agent"], per_family=2)
    asked = Plan(parse("cloud,cloud-ngram:3"), prompts, [Conditions(1.0)])
    console = Console(file=StringIO())

    found = await Run(asked, services, tmp_path / "out.json").go(console)

    reached = [f"agent/{name}/{turn}" for name in ("ngrams", "uplink") for turn in (1, 2, 3)]
    assert [a.prompt for a in found.answers] == reached * 2
    assert [row.identical_to_cloud for row in found.rows] == [True] * len(found.rows)
    said = cast(StringIO, console.file).getvalue()
    assert said.count("8192 tokens") == 4
    assert "cloud-ngram:3: agent/uplink ends before agent/uplink/4: 400" in said


async def test_one_engine_runs_at_a_time_and_all_are_compared_with_cloud(
    tmp_path: Path, services: ServicesPlan
) -> None:
    out, log = tmp_path / "out.json", tmp_path / "log"
    asked = plan("cloud,cloud-ngram:3,cloud-draft:2", prompts=2, questions=1)

    await Run(asked, services, out).go(Console(quiet=True))

    events = [json.loads(line) for line in log.read_text().splitlines()]
    assert [event for event, _, _ in events] == ["starts", "ends"] * 5
    started = [arguments for event, _, arguments in events if event == "starts"]
    assert ["ngram" in str(each) for each in started] == [False, True, False, True, False]
    assert all("--vllm.dtype" in each for each in started)
    found = load(out, Results)
    assert {(row.arm, row.rtt_ms) for row in found.rows} == {
        (arm.name, rtt_ms) for arm in asked.arms for rtt_ms in (1.0, 2.0)
    }
    of_ngram = next(row for row in found.rows if row.arm == "cloud-ngram:3")
    assert (of_ngram.target_passes, of_ngram.accepted, of_ngram.drafted) == (6, 4, 8)
