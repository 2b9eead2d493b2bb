"""Reads what tests expect from files, a case a line; `pytest --update` writes them anew."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

Json = dict[str, Any]


@dataclass(frozen=True)
class Line:
    """A line of JSON: what is given, and what is expected of it."""

    file: Path
    number: int
    given: Json

    def __str__(self) -> str:
        told = (self.given.get(name) for name in ("about", "client", "text", "body"))
        shown = next((each for each in told if each is not None), "")
        return f"{self.file.stem} {shown if isinstance(shown, str) else json.dumps(shown)}"[:72]

    def expected(self, results: Collection[str]) -> Json:
        return {name: value for name, value in self.given.items() if name in results}

    def check(
        self, found: Json, request: pytest.FixtureRequest, results: Collection[str]
    ) -> None:
        """Assert that `found` is expected; or write it. results: names of what is expected."""
        expected = self.expected(results)
        if found == expected or not request.config.getoption("update"):
            assert found == expected
            return
        given = {name: value for name, value in self.given.items() if name not in results}
        written = self.file.read_text(encoding="utf-8").split("\n")
        written[self.number] = json.dumps({**given, **found}, ensure_ascii=False)
        self.file.write_text("\n".join(written), encoding="utf-8")


def lines_of(file: Path) -> Iterator[Line]:
    for number, text in enumerate(file.read_text(encoding="utf-8").split("\n")):
        if text:
            yield Line(file, number, json.loads(text))


def grown(value: Any) -> Any:  # noqa: ANN401 - JSON
    """Return a value in which {"*": [item, count]} stands for so many times a text or an array,
    or for an object with so many fields that are named "%d", and {"+": texts} for a text."""
    match value:
        case {"+": [*texts]}:
            return "".join(map(grown, texts))
        case {"*": [{"%d": item}, int(count)]}:
            return {str(number): item for number in range(count)}
        case {"*": [item, int(count)]}:
            return item * count
        case Mapping():
            return {name: grown(item) for name, item in value.items()}
        case list():
            return [grown(item) for item in value]
    return value
