"""The walk in docs/architecture.md is what runs, and stays as short as it is."""

from __future__ import annotations

import asyncio

import pytest

from tests.walk.calls import Call, Walk
from tests.walk.documented import missing, rows
from tests.walk.measured import Walks, measure

DRAFT_TOKEN = (55, 23)
"""A draft token goes through at most so many files and borders of folders, at both ends."""

REQUEST = (64, 26)
"""A streamed chat request goes through at most so many at the edge."""


@pytest.fixture(scope="module")
def walks() -> Walks:
    return asyncio.run(measure())


@pytest.mark.models
def test_the_documented_walk_is_made_of_calls(walks: Walks) -> None:
    """On a busy machine drafts may pay so little that an answer has none."""
    absent = missing(walks.answer, "llama.cpp")
    for _ in range(2):
        absent = absent and missing(asyncio.run(measure()).answer, "llama.cpp")
    assert absent == []
    assert missing(Walk(frozenset()), "llama.cpp"), "the negative control"


def grown(walks: Walks) -> list[str]:
    """Return the files of each walk that is longer than it may be."""
    return [
        file
        for walk, (files, borders) in (
            (walks.draft_token, DRAFT_TOKEN),
            (walks.request, REQUEST),
        )
        if len(walk.files) > files or len(walk.borders) > borders
        for file in sorted(walk.files)
    ]


@pytest.mark.models
def test_no_walk_grows(walks: Walks) -> None:
    """On a busy machine an edge may post drafts, or lose a link: that is walked, too."""
    longer = grown(walks)
    for _ in range(2):
        longer = longer and grown(asyncio.run(measure()))
    assert longer == []


def test_a_border_is_between_two_folders() -> None:
    calls = {Call("a/b.py", "a/c.py"), Call("a/b.py", "d/e.py"), Call("-", "f/g.py")}
    walk = Walk(frozenset(calls))

    assert walk.borders == {("a", "d")}
    assert walk.files == {"a/b.py", "a/c.py", "d/e.py", "f/g.py"}


def test_the_table_names_both_targets() -> None:
    assert {"llama.cpp", "vLLM"} <= {row.where.split(",")[0] for row in rows()}
