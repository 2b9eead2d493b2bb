"""Makes up answers and draft tokens from texts, so that `pace` also runs without models.

What an answer repeats of its prompt, of itself and of earlier answers decides what n-grams
and suffixes bring, and that is in the texts: files of the scenarios, and questions of the
bench. Their tokens are words and parts of words, about as long as those of a large
vocabulary. Draft tokens are right with about the probability that the Qwen pair has in such a
family, one independent of another. So these families show who repeats text best; traces show
how well a draft model drafts.

    code      the prompt is a function's head and docstring, the answer the whole function
    maths   the prompt is a question, the answer another one (no answer of a model is at hand)
    chat      the prompt is the begin of a document, the answer a later part of it
    agent     the prompt is a file, the answer a part of it with one name changed
    long      the prompt is three files, the answer quotes and describes them by turns
    extract   the prompt is a file, the answer a record about it in JSON, as in a pipeline
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from random import Random
from typing import Final
from zipfile import ZipFile

from bench.long_work import SOURCES
from bench.prompts import read
from bench.simulator.source import Source, guessed

ANSWERS: Final = 8
"""Each family has this many answers."""

ANSWER_TOKENS: Final = 200
"""An answer has at most this many tokens."""

ACCEPTANCE: Final[Mapping[str, float]] = {
    "code": 0.95, "maths": 0.9, "chat": 0.7, "agent": 0.85, "long": 0.75, "extract": 0.85,
}  # fmt: skip
"""A draft token is right with this probability."""

_TOKEN: Final = re.compile(r"[ ]?[^\W\d_]{1,7}|\d|\s+|_|[^\w\s]{1,2}")
_FUNCTION: Final = re.compile(r"^( *)(?:async )?def .+?(?=^\1\S|\Z)", re.DOTALL | re.MULTILINE)

Texts = Iterator[tuple[str, str]]
"""Prompts and their answers."""


def made_up() -> dict[str, list[Source]]:
    """Return the answers of each family."""
    with ZipFile(SOURCES) as archive:
        files = {name: archive.read(name).decode() for name in archive.namelist()}
    python = {name: text for name, text in sorted(files.items()) if name.endswith(".py")}
    makers: Mapping[str, Callable[[Mapping[str, str]], Texts]] = {
        "code": _code, "maths": _maths, "chat": _chat,
        "agent": _agent, "long": _long, "extract": _extract,
    }  # fmt: skip
    return {
        family: list(_sources(make(python if family != "chat" else files), family))
        for family, make in makers.items()
    }


def _sources(texts: Texts, family: str) -> Iterator[Source]:
    ids: dict[str, int] = {}
    chance = Random(family)
    for count, (prompt, answer) in enumerate(texts):
        if count == ANSWERS:
            return
        read, target = (
            [ids.setdefault(token, len(ids)) for token in _TOKEN.findall(text)]
            for text in (prompt, answer)
        )
        right = ACCEPTANCE[family]
        target = target[:ANSWER_TOKENS]
        yield Source(read, target, guessed(target, right, chance, right))


def _functions(text: str, least: int, most: int) -> list[str]:
    names = (match[0] for match in _FUNCTION.finditer(text))
    return [function for function in names if least <= function.count("\n") <= most]


def _code(files: Mapping[str, str]) -> Texts:
    for text in files.values():
        for function in _functions(text, 10, 40)[:2]:
            head, quotes, rest = function.partition('"""')
            docstring = rest.partition('"""')[0]
            if quotes and docstring:
                yield f'Complete this.\n{head}"""{docstring}"""\n', f"```python\n{function}```"


def _maths(files: Mapping[str, str]) -> Texts:
    questions = [each.prompt for each in read(families=["maths"])]
    yield from zip(questions, questions[1:] + questions[:1], strict=True)


def _chat(files: Mapping[str, str]) -> Texts:
    for text in files.values():
        prose = [line for line in text.splitlines() if len(line) > 60 and line[0].isalpha()]
        if len(prose) > 8:
            yield prose[0], "\n".join(prose[4:])


def _agent(files: Mapping[str, str]) -> Texts:
    for name, text in files.items():
        for function in _functions(text, 15, 60)[:1]:
            names = re.findall(r"\b[a-z]{4,}\b", function.partition(":")[2])
            old = max(sorted(set(names)), key=names.count)
            changed = re.sub(rf"\b{old}\b", f"{old}_now", function)
            ask = f"\nIn {name}, call {old} {old}_now in this function."
            yield f"[read_file {name}]\n{text}{ask}", f"```python\n{changed}```"


def _long(files: Mapping[str, str]) -> Texts:
    chosen = [text for text in files.values() if text.count('"""') > 6]
    for first, second, third in zip(chosen, chosen[1:], chosen[2:], strict=False):
        quoted = re.findall(r'"""([^"]{80,300})', first)[1::2]
        other = chosen[0] if first is not chosen[0] else chosen[-1]
        own = re.findall(r'"""([^"]{80,300})', other)
        parts = [part for pair in zip(own, quoted, strict=False) for part in pair]
        yield f"{first}\n{second}\n{third}\nWhat does it do?", "\n\n".join(parts)


def _extract(files: Mapping[str, str]) -> Texts:
    for name, text in files.items():
        names: Sequence[str] = re.findall(r"(?:def|class) (\w+)", text)
        record = {
            "path": name, "language": "python", "is_test": "test" in name,
            "summary": text.strip('"').partition("\n")[0], "needs_review": False,
            "definitions": [{"name": each, "is_public": each[0] != "_"} for each in names[:5]],
            "imports_asyncio": "import asyncio" in text, "confidence": "high",
        }  # fmt: skip
        yield f"{text[:6000]}\n\nThe record of {name}:", json.dumps(record, indent=1)
