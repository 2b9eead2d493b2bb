"""Rivals in vLLM's order of work, and the cells in which the product stands beside them."""

from __future__ import annotations

import json
import sys
from importlib.util import find_spec
from pathlib import Path
from random import Random
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from bench.__main__ import app
from bench.files import load
from bench.link import Conditions
from bench.pace.command import SERVICE
from bench.pace.loads import Turn, figures
from bench.pace.machine import PART, Fleet
from bench.pace.results import Found
from bench.pace.script import said
from bench.simulator.hosts import World, gpu
from bench.simulator.made_up import made_up
from bench.simulator.pace import HEADS
from bench.simulator.rivals import Head, Ngram, Speculation, Suffix, head, ngram
from bench.simulator.source import Source, believed, synthetic
from bench.simulator.world import Arm, simulate
from tests.bench.answers import trace

GPU = World(gpu(0.01, 0.005, twice_at=256), Conditions(10.0))
COPY = Source(range(50), range(50), believed(range(50), 0.9))
"""An answer that repeats its prompt."""


def rate(arm: Arm, *clients: Source) -> float:
    answers = simulate(GPU, arm, [[source] for source in clients])
    return min(answer.tokens_per_s for answer in answers)


def proposed(prompt: list[int], most: int = 4) -> list[int]:
    proposer = Ngram()
    proposer.begin(Source(prompt, (), ()))
    return list(proposer.propose(most))


def test_an_ngram_continues_as_at_its_first_occurrence() -> None:
    assert proposed([1, 2, 7, 1, 2, 8, 1, 2]) == [7, 1, 2, 8]


def test_the_longest_ngram_of_at_most_four_tokens_counts() -> None:
    assert proposed([3, 4, 9, 2, 3, 4, 5, 2, 3, 4], most=1) == [5]


def test_a_single_token_is_no_ngram() -> None:
    assert proposed([1, 2, 3, 1]) == []


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

        assert proposed(text, 5) == found


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


@pytest.mark.skipif(not find_spec("arctic_inference"), reason="arctic-inference is missing")
def test_suffix_decoding_remembers_earlier_answers() -> None:
    proposer = Suffix(4.0, 0.1, 64)
    first = Source([90, 91], range(20), believed(range(20), 0.9))
    proposer.begin(first)
    proposer.extend(first.tokens)
    proposer.begin(Source([95, 96], range(20), believed(range(20), 0.9)))
    proposer.extend([0, 1])

    assert list(proposer.propose(4)) == [2, 3, 4, 5]


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
    service = found.lines[-1].figures
    assert service["known text"] == 1.0
    assert 0.0 < service["passes a token"] <= 1.0
    assert service["of API the fake target, us a token"] > 0.0
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


# The bench's commands that start vLLM work on tiny settings. No time is asserted.


def lines(out: Path, *arguments: str) -> dict[str, dict[str, float]]:
    """Run a command of the bench; return the figures of its arms."""
    pytest.importorskip("vllm")
    python = ("--verifier-python", sys.executable)
    where = ("--json", str(out / "out.json"), "--tokens", "24", "--turns", "3", *python)
    result = CliRunner().invoke(app, [*arguments, *where])
    assert result.exit_code == 0, (result.output, result.exception)
    return {f"{line.load['arm']}": line.figures for line in load(out / "out.json", Found).lines}


@pytest.mark.vllm
@pytest.mark.filterwarnings("default")
def test_the_stand_in_accepts_the_scripts_draft_tokens_up_to_the_first_other() -> None:
    pytest.importorskip("vllm")
    from bench.pace.standin import StandInWorker, _Text

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


@pytest.mark.long
@pytest.mark.vllm
@pytest.mark.filterwarnings("default")
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
