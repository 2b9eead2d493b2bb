"""The cores that each end gets."""

from __future__ import annotations

import os
import sys
from collections.abc import Collection
from pathlib import Path

import pytest

from picospec.gateway.hosting import limits
from picospec.gateway.hosting.limits import Pins, compute_threads, cores_of, parse_pins, share


def with_siblings(folder: Path, *siblings: str) -> Path:
    """Write the topology of CPUs, whose cores have these CPUs."""
    for cpu, text in enumerate(siblings):
        directory = folder / f"cpu{cpu}" / "topology"
        directory.mkdir(parents=True)
        (directory / "thread_siblings_list").write_text(f"{text}\n")
    return folder


@pytest.mark.parametrize(
    ("cpus", "siblings", "pins"),
    [
        ({3}, (), Pins()),
        ({0, 1}, (), Pins(frozenset({0}), frozenset({1}))),
        ({2, 5, 7}, (), Pins(frozenset({2, 5}), frozenset({7}))),
        ({0, 1}, ("0-1", "0-1"), Pins(frozenset({0}), frozenset({1}))),
        (range(4), ("0,2", "1,3", "0,2", "1,3"), Pins(frozenset({0, 2}), frozenset({1, 3}))),
        ({0, 1, 3}, ("0,2", "1,3", "0,2", "1,3"), Pins(frozenset({0}), frozenset({1, 3}))),
    ],
)
def test_the_verifier_gets_the_first_half_of_the_cores_and_the_edge_the_rest(
    tmp_path: Path, cpus: Collection[int], siblings: tuple[str, ...], pins: Pins
) -> None:
    assert share(cores_of(cpus, with_siblings(tmp_path, *siblings))) == pins


@pytest.mark.skipif(sys.platform != "linux", reason="affinity is Linux's")
def test_threads_are_as_many_as_the_cores_that_the_process_may_use(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    topology = with_siblings(tmp_path, "0,2", "1,3", "0,2", "1,3")
    monkeypatch.setattr(limits, "usable", lambda: {0, 1, 2, 3})
    monkeypatch.setattr(limits, "cores_of", lambda cpus: cores_of(cpus, topology))
    monkeypatch.setattr(limits, "_QUOTA", tmp_path / "cpu.max")
    assert compute_threads() == 2

    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert compute_threads() == 2

    (tmp_path / "cpu.max").write_text("50000 100000\n")
    assert compute_threads() == 1


def test_a_system_without_linuxs_calls_still_has_threads(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(sys, "platform", "darwin")
    sysctl = tmp_path / "sysctl"
    sysctl.write_text('#!/bin/sh\n[ "$2" = hw.perflevel0.physicalcpu ] && echo 6\n')
    sysctl.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)

    assert compute_threads() == 6
    assert limits.usable()


@pytest.mark.parametrize(
    ("text", "pins"),
    [
        ("none", Pins()),
        ("0:1", Pins(frozenset({0}), frozenset({1}))),
        ("0,2-3:1", Pins(frozenset({0, 2, 3}), frozenset({1}))),
        (":1", Pins(frozenset(), frozenset({1}))),
    ],
)
def test_pins_are_read_as_written(text: str, pins: Pins) -> None:
    assert parse_pins(text, range(4)) == pins


@pytest.mark.parametrize("text", ["0", "a:1", "0:1-", "-1:0", "0:9"])
def test_pins_of_another_form_are_an_error(text: str) -> None:
    with pytest.raises(ValueError, match=r"cores|pins"):
        parse_pins(text, range(4))
