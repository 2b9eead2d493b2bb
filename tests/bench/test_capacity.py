"""A verifier under load: what scripted edges and plain clients get, and what was predicted."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from bench.__main__ import app
from bench.calibrate import Drafted, Question, _run, curve, line
from bench.capacity import Answered, Capacity, Figures, Load, figures
from bench.prompts import Prompt
from bench.results import Host, load, save
from bench.results import load as read
from bench.run.services import Services, ServicesPlan
from bench.simulator.hosts import Speeds, hosts_of
from bench.simulator.source import traced
from bench.traces import Subject, traces
from local_models.store import open_store
from speculation.messages import Commit, Down, Draft, Finish, Limits, Opened
from tests.bench.answers import right_trace
from tests.verifier.conftest import fake_verifier
from tests.verifier.fake_target import STREAMS, said

TOKENS = 24


def test_both_arms_are_measured_at_every_number_of_sessions(tmp_path: Path) -> None:
    for family, prompt in (("code", (STREAMS, 5)), ("chat", (STREAMS, 6))):
        tokens = [said(prompt, at) for at in range(TOKENS)]
        right_trace(prompt, tokens, family=family, name=f"{family}/0").save(tmp_path)
    out = tmp_path / "out.json"
    arguments = ["--sessions", "1,3", "--rtt", "2", "--step", "0.1", "--hosts", "5/1"]

    with fake_verifier(keys="") as (_, url):
        files = ["--traces", str(tmp_path), "--json", str(out)]
        result = CliRunner().invoke(app, ["capacity", "--url", url, *files, *arguments])

    assert result.exit_code == 0, (result.output, result.exception)
    rows = read(out, Capacity).rows
    assert [(row.sessions, row.arm) for row in rows] == [
        (1, "cloud"), (1, "picospec"), (3, "picospec"), (3, "cloud"),
    ]  # fmt: skip
    assert all(row.measured.scripted_share == 1.0 for row in rows)
    by_arm = {row.arm: row for row in rows if row.sessions == 3}
    assert by_arm["cloud"].measured.passes_per_token == 1.0
    assert by_arm["picospec"].measured.passes_per_token < 1.0
    assert all(row.predicted is not None for row in rows)
    assert "| 3 | `picospec` |" in result.output


def answered(asked_s: float, arrivals_s: list[float], tokens: int) -> Answered:
    return Answered(asked_s, arrivals_s[-1], arrivals_s, tokens, len(arrivals_s), tokens // 2)


def test_figures_are_over_all_clients_and_the_slowest_is_one_client() -> None:
    fast = [answered(0.0, [1.0, 2.0], 10), answered(2.0, [3.0, 4.0], 10)]
    slow = [answered(0.0, [4.0, 8.0], 4)]

    found = figures([fast, slow])

    assert found == Figures(
        tokens_per_s=24 / 8,
        slowest_tokens_per_s=4 / 8,
        passes_per_token=6 / 24,
        gap_ms_p50=1000.0,
        gap_ms_p95=pytest.approx(3700.0),
        scripted_share=0.5,
    )


@pytest.mark.models
async def test_scripted_edges_draft_what_a_real_target_generates() -> None:
    file = open_store({}).find("smollm2", "target").path
    subject = Subject(Prompt("a", "chat", "Count to ten."), "chat", 0.0, 7)
    [recorded] = traces(file, file, [subject], tokens=16, context_tokens=256)
    arguments = ("--llama.slots", "4", "--llama.context-tokens", "512")

    async with Services(ServicesPlan("smollm2", "", {}, "llama", arguments)) as services:
        load = Load(services.verifier_url, [traced(recorded)], 5.0, 0.005, None)
        cloud, picospec = [row async for row in load.rows([3])]

    assert cloud.measured.passes_per_token == 1.0
    assert picospec.measured.scripted_share == 1.0  # Q8_0: the same text in any batch
    assert picospec.measured.passes_per_token < 1.0  # few drafts are in time on a busy host
    assert picospec.pass_rows > cloud.pass_rows > 1.0


# What is measured of two ends reaches the simulator as it was.

ANSWER = tuple(range(100, 140))


def speeds() -> Speeds:
    host = Host("a processor", 2, 8.0, "Linux", "3.11", 0.0)
    curves = ({1: 0.2, 5: 0.3}, {1: 0.4}, {1: 0.02, 8: 0.1}, {1: 0.01})
    return Speeds(host, "abc", {}, *curves, 0.4, 0.01, 0.003, 0.001)


def commit(start: int, tokens: int, *, accepted: int, pass_s: float = 0.2) -> Commit:
    return Commit(
        0, start, ANSWER[start : start + tokens], accepted, queue_s=0.01, pass_s=pass_s
    )


def test_speeds_are_hosts_to_the_simulator(tmp_path: Path) -> None:
    path = tmp_path / "speeds.json"
    save(speeds(), path)

    hosts = hosts_of(str(path))

    assert load(path, Speeds) == speeds()
    assert (hosts.pass_s.of(3), hosts.draft_s.of(1)) == pytest.approx((0.25, 0.02))
    assert hosts.lost_s(1, 0.1) == pytest.approx(0.05)
    assert hosts.alone_s is not None
    assert hosts.alone_s.of(1) == 0.01
    assert (hosts.first_s, hosts.prefill_s) == (0.4, 0.01)
    assert (hosts.stack_s, hosts.message_s) == (0.003, 0.001)


def test_a_pass_has_as_many_rows_as_its_commit_has_tokens() -> None:
    commits = [
        *(commit(1, 5, accepted=4, pass_s=seconds) for seconds in (0.2, 0.3, 0.9)),
        *[commit(6, 3, accepted=2, pass_s=0.1)] * 3,
        *[commit(9, 2, accepted=2)] * 3,  # cut at the answer's end: these had a row more
    ]

    assert curve(commits) == pytest.approx({3: 0.11, 5: 0.31})


@pytest.mark.parametrize(
    ("seconds", "expected"), [((0.3, 0.4), (0.2, 0.01)), ((0.4, 0.3), (0.35, 0.0))]
)
def test_first_passes_lie_on_a_line_that_does_not_fall(
    seconds: tuple[float, float], expected: tuple[float, float]
) -> None:
    assert line([10, 20], seconds) == pytest.approx(expected)


class FakeLink:
    """A target that judges all that is there, four drafts at most."""

    def __init__(self) -> None:
        self.drafts: list[Draft] = []

    async def post(self) -> None: ...

    def send(self, message: Draft) -> None:
        self.drafts.append(message)

    async def events(self) -> AsyncGenerator[Down]:
        yield Opened("s", Limits())
        committed = 0
        while committed < len(ANSWER):
            reach = max((draft.start + len(draft.tokens) for draft in self.drafts), default=0)
            count = min(4, reach - committed, len(ANSWER) - committed - 1) if committed else 0
            yield commit(committed, count + 1, accepted=count)
            committed += count + 1
        yield Finish("length")


@pytest.mark.parametrize("ahead", [True, False])
async def test_every_pass_of_a_timed_session_judges_what_was_asked_for(ahead: bool) -> None:
    link = FakeLink()

    commits = await _run(link, Drafted(Question((1,), ANSWER), 4, ahead))

    assert [len(commit.tokens) for commit in commits[1:7]] == [5] * 6
    furthest = [draft.start + len(draft.tokens) for draft in link.drafts]
    assert furthest[:2] == [5, 10]
