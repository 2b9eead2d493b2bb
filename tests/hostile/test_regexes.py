"""No regular expression of the product takes more than linear time: clients write the texts."""

from __future__ import annotations

import ast
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeGuard

import pytest

try:
    from re import _parser as parser  # type: ignore[attr-defined]
except ImportError:
    import sre_parse as parser

ROOT = Path(__file__).parents[2]
ROOMS = ("picospec", "edge_agent", "gateway", "local_models", "speculation", "verifier")
COUNT = 20_000
"""A part is repeated so often. Quadratic time for it is more than a second."""


def texts_of(node: ast.AST) -> Iterator[str | bytes]:
    """Yield the text of a literal, in which "x" stands for each value."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str | bytes):
        yield node.value
    elif isinstance(node, ast.JoinedStr):
        parts = (part.value if isinstance(part, ast.Constant) else "x" for part in node.values)
        yield "".join(map(str, parts))


def expressions() -> Iterator[tuple[str, str, int, str]]:
    """Yield each regular expression in the product: its place, pattern and flags, and whether
    it is searched for, or only tried at a place."""
    for file in (file for room in ROOMS for file in sorted((ROOT / room).rglob("*.py"))):
        source = file.read_text()
        for node in ast.walk(ast.parse(source)):
            place = f"{file.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"
            flags, ways = 0, ["search"]
            if isinstance(node, ast.keyword) and node.arg == "pattern":
                found = [*texts_of(node.value)]
            elif is_call_of_re(node):
                found = [*texts_of(node.args[0])]
                written = ast.get_source_segment(source, node) or ""
                flags = re.MULTILINE if "MULTILINE" in written else 0
                ways = [node.func.attr]
                if node.func.attr == "compile" and (
                    named := re.search(rf"(\w+)(: Final)? = {re.escape(written)}", source)
                ):
                    ways = re.findall(rf"\b{named[1]}\.(\w+)\(", source)
                    ways = ways or re.findall(r"\.(search|match|fullmatch)\(", source)
            else:
                continue
            anchored = ways and {*ways} <= {"match", "fullmatch"}
            for pattern in found:
                text = pattern if isinstance(pattern, str) else pattern.decode("latin-1")
                yield place, text, flags, "match" if anchored else "search"


def is_call_of_re(node: ast.AST) -> TypeGuard[ast.Call]:
    return (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and ast.unparse(node.func.value) == "re"
        and node.func.attr not in ("escape", "purge")
        and bool(node.args)
    )


def a_character(items: Any) -> str:  # noqa: ANN401 - a private type of `re`
    """Return a character that a set allows."""
    allowed = [chr(code) for code in (10, 32, 9, *range(33, 127), 233)]
    negated = str(items[0][0]) == "NEGATE"
    for each in allowed:
        code = ord(each)
        hit = False
        for operation, value in items:
            name = str(operation)
            if name == "LITERAL":
                hit |= code == value
            elif name == "RANGE":
                hit |= value[0] <= code <= value[1]
            elif name == "CATEGORY":
                kind = {"SPACE": str.isspace, "DIGIT": str.isdigit, "WORD": str.isalnum}
                hit |= kind[str(value).rpartition("_")[2]](each)
        if hit != negated:
            return each
    return "a"


def a_text(parsed: Any) -> Iterator[tuple[str, list[str]]]:  # noqa: ANN401
    """Yield a text that matches, and the texts of the parts that repeat."""
    text, repeated = "", list[str]()
    for operation, value in parsed:
        name = str(operation)
        if name in ("LITERAL", "NOT_LITERAL"):
            text += chr(value) if name == "LITERAL" else "a"
        elif name == "IN":
            text += a_character(value)
        elif name == "ANY":
            text += "a"
        elif name == "SUBPATTERN":
            for inner, more in a_text(value[-1]):
                text, repeated = text + inner, repeated + more
        elif name == "BRANCH":
            for inner, more in a_text(value[1][0]):
                text, repeated = text + inner, repeated + more
        elif name in ("MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT"):
            for inner, more in a_text(value[2]):
                text += inner * max(1, min(value[0], 4))
                repeated += [*more, inner]
    yield text, repeated


def hostile_texts(pattern: str, flags: int) -> Iterator[str]:
    """Yield long texts in which each repeated part, or the whole, occurs again and again."""
    whole, repeated = next(a_text(parser.parse(pattern, flags)))
    for part in {*repeated, whole, "\n", " ", *(f"{whole[:1]}{part}" for part in repeated)}:
        if part:
            many = part * (COUNT // len(part))
            yield from (f"{many}\x00", f"{whole}{many}\x00", f"\n{whole[:1]}{many}\x00")


EXPRESSIONS = [*expressions()]
MOST_S = 1.0
"""A linear search takes a hundredth of it, and a quadratic one several times as much."""


@pytest.mark.parametrize(("place", "pattern", "flags", "way"), EXPRESSIONS)
def test_a_long_text_takes_linear_time(place: str, pattern: str, flags: int, way: str) -> None:
    compiled = re.compile(pattern, flags)
    for text in hostile_texts(pattern, flags):
        begun = time.process_time()
        if way == "search":
            compiled.search(text)
        else:
            compiled.match(text)
            compiled.fullmatch(text)
        assert time.process_time() - begun < MOST_S, (place, pattern, text[:40])


def test_a_quadratic_expression_is_found() -> None:
    assert len(EXPRESSIONS) > 50
    quadratic = r"^\s*(%llguidance\b|start\s*:)"
    with pytest.raises(AssertionError, match="nowhere"):
        test_a_long_text_takes_linear_time("nowhere", quadratic, re.MULTILINE, "search")
