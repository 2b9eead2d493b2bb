"""Runs put together are one run with as many repeats; what does not belong is refused."""

from __future__ import annotations

import msgspec
import pytest

from picospec.bench.data.results import Host, Results
from picospec.bench.report.command import joined
from tests.bench.answers import answer, results


def test_each_run_is_a_repeat_against_its_own_cloud() -> None:
    quiet = results(answer("cloud", 4.0), answer("picospec", 1.0))
    busy = results(answer("cloud", 8.0), answer("picospec", 8.0), answer("sync:4", 4.0))

    found = joined([quiet, busy])

    assert [a.repeat for a in found.answers] == [0, 0, 1, 1, 1]
    assert found.settings["repeats"] == 2
    assert found.settings["arms"] == ["cloud", "picospec", "sync:4"]
    assert {row.arm: row.speedup_vs_cloud for row in found.rows} == {
        "cloud": 1.0,
        "picospec": 2.0,  # 4 and 1
        "sync:4": 2.0,
    }


def test_every_commit_is_named_once() -> None:
    first = results(answer("cloud", 4.0))
    later = msgspec.structs.replace(first, commit="def456")

    assert joined([first, later, first]).commit == "abc123, def456"


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("models", {"models": {"target": "another"}}),
        ("link", {"link": {"jitter_ms": 5.0}}),
        ("tokens", {"settings": {"tokens": 20, "repeats": 1}}),
        ("processor", {"host": Host("another", 2, 8.0, "Linux", "3.11", 0.0)}),
    ],
)
def test_runs_of_something_else_are_refused(name: str, other: dict[str, object]) -> None:
    first = results(answer("cloud", 4.0))
    strange: Results = msgspec.structs.replace(first, **other)

    with pytest.raises(ValueError, match=name):
        joined([first, strange])
