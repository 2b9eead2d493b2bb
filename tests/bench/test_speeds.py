"""What is measured of two ends reaches the simulator as it was."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from picospec.bench.calibrate import Drafted, Question, _run, curve, line
from picospec.bench.data.results import Host, load, save
from picospec.bench.simulator.hosts import Speeds, hosts_of
from picospec.speculation.messages import (
    Commit,
    Down,
    Draft,
    Finish,
    Limits,
    Opened,
)

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
