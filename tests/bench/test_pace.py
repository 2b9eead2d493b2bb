"""Rivals in vLLM's order of work, and the cells in which the product stands beside them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from random import Random

import pytest
from typer.testing import CliRunner

from bench.__main__ import app
from bench.files import load
from bench.link import Conditions
from bench.pace.command import SERVICE
from bench.pace.loads import Turn, figures
from bench.pace.machine import PART
from bench.pace.results import Found
from bench.simulator.hosts import World, gpu
from bench.simulator.made_up import made_up
from bench.simulator.pace import HEADS
from bench.simulator.rivals import Head, Ngram, Speculation, head, ngram
from bench.simulator.source import Source, believed, synthetic
from bench.simulator.world import Arm, simulate
from tests.bench.answers import trace

GPU = World(gpu(0.01, 0.005, twice_at=256), Conditions(10.0))
COPY = Source(range(50), range(50), believed(range(50), 0.9))
"""An answer that repeats its prompt."""


def rate(arm: Arm, *clients: Source) -> float:
    answers = simulate(GPU, arm, [[source] for source in clients])
    return min(answer.tokens_per_s for answer in answers)


def test_ngrams_are_those_of_a_search_through_the_whole_text() -> None:
    chance = Random(1)
    for _ in range(200):
        text = [chance.randrange(3) for _ in range(chance.randrange(2, 30))]
        found: list[int] = []
        for n in range(min(4, len(text)), 1, -1):
            ends = [e for e in range(n, len(text)) if text[e - n : e] == text[-n:]]
            if ends:
                found = text[ends[0] :][:5]
                break

        proposer = Ngram()
        proposer.begin(Source(text, (), ()))
        assert list(proposer.propose(5)) == found


def test_a_rival_without_proposals_is_the_target_alone() -> None:
    source = synthetic(0.7, 40, prompt_tokens=5)

    assert rate(Arm(rival=Speculation()), source) == pytest.approx(rate(Arm(), source))


def test_a_repeated_prompt_is_copied_in_few_passes() -> None:
    alone, copied = rate(Arm(), COPY), rate(Arm(rival=ngram(8)), COPY)

    # The first n-gram ends with the second token; six passes commit the other 48.
    assert copied == pytest.approx(alone * 49 / 7, rel=0.04)


def test_every_row_takes_its_time() -> None:
    few, many = rate(Arm(rival=ngram(8)), COPY), rate(Arm(rival=ngram(8)), *[COPY] * 64)

    assert many < 0.45 * few


def test_a_head_takes_time_and_gains_what_its_acceptance_allows() -> None:
    source = synthetic(0.0, 2000)
    expected = sum(0.7**k for k in range(5)) / (1 + 4 * 0.04 + 4 / 255)

    gained = rate(Arm(rival=head(4, 0.7)), source) / rate(Arm(), source)

    assert gained == pytest.approx(expected, rel=0.05)


def test_a_wrong_head_proposes_all_its_tokens() -> None:
    proposer = Head(0.0)
    proposer.begin(COPY)

    assert len(proposer.propose(3)) == 3


def test_pace_writes_a_cell_for_each_point_distance_load_and_family(tmp_path: Path) -> None:
    trace(0.0, "code").save(tmp_path)
    out = tmp_path / "pace.json"
    options = ["--points", "10/5,25/5", "--rtt", "2,50", "--sessions", "1,4"]

    done = CliRunner().invoke(
        app, ["pace", "--traces", str(tmp_path), "--json", str(out), *options]
    )

    assert done.exit_code == 0, done.output
    cells = json.loads(out.read_text())["cells"]
    assert len(cells) == 8
    assert all(min(cell["rates"].values()) > 0 for cell in cells)


def test_made_up_answers_are_always_the_same_and_repeat_what_their_family_repeats() -> None:
    answers = made_up()

    assert answers.keys() == HEADS.keys()
    assert all(source.tokens for some in answers.values() for source in some)
    again = made_up()["agent"][0]
    assert (again.prompt, again.tokens) == (
        answers["agent"][0].prompt,
        answers["agent"][0].tokens,
    )
    gained = {
        name: rate(Arm(rival=ngram(8)), some[0]) / rate(Arm(), some[0])
        for name, some in answers.items()
    }
    assert min(gained["code"], gained["agent"]) > 2 * gained["chat"]


# `bench host` on tiny settings: each part has its figures. No time is asserted.


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
    machine, service = found.lines[1].figures, found.lines[-1].figures
    assert machine["tokens a step"] > 2 * 3  # three sessions, whose draft tokens are judged
    timed = ("wait_s", "offer", "begin", "ran", "received")
    assert all(machine[f"of it {name}, ms"] > 0.0 for name in timed)
    assert service["known text"] == 1.0
    assert 0.0 < service["passes a token"] <= 1.0
    assert service["of API the fake target, us a token"] > 0.0
    assert "granian" in found.versions
    assert f"{PART}\n\n| sessions |" in result.output


def test_arms_are_compared_turn_by_turn_with_the_first() -> None:
    def turns(*seconds: float) -> list[Turn]:
        return [Turn(100, 50, 100, s, {"API": 0.01}) for s in seconds]

    found = figures(turns(1.0, 2.0), turns(2.0, 4.0))

    assert found["over the first"] == found["of it, low"] == found["of it, high"] == 2.0
    assert found["tokens/s"] == 200 / 3
    assert found["API, us a token"] == 100.0


@pytest.mark.long
@pytest.mark.vllm
@pytest.mark.filterwarnings("default")
def test_the_stand_in_answers_by_the_script_with_and_without_the_plugin(tmp_path: Path) -> None:
    pytest.importorskip("vllm")
    arms, out = "stock,plugin,sessions,useless", tmp_path / "out.json"
    sizes = ["--passes", "12", "--clients", "2", "--rtt", "2", "--tokens", "24", "--turns", "3"]
    where = ["--verifier-python", sys.executable, "--json", str(out), "--arms", arms]

    result = CliRunner().invoke(app, ["standin", *sizes, *where])

    assert result.exit_code == 0, (result.output, result.exception)
    found = {f"{line.load['arm']}": line.figures for line in load(out, Found).lines}
    assert [*found] == arms.split(",")
    assert all(each["known text"] == 1.0 for each in found.values())
    assert found["sessions"]["passes a token"] < 0.8 < found["useless"]["passes a token"] <= 1.0
    assert found["sessions"]["simulated, over plain"] > 1.0
    assert all(each.keys() >= {"API, cores", "engine, cores"} for each in found.values())
