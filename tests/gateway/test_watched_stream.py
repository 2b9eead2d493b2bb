"""A stream tells of speculation to those who ask, and is otherwise what it was."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.grammars import Tags
from gateway.output.detokenise import Detokeniser, StopConditions, TextDelta
from gateway.output.formats.base import ToolFormat
from gateway.output.message import ParsedMessage
from gateway.output.output_format import FORMATS
from gateway.output.output_parser import OutputParser
from gateway.output.reasoning import read_reasoning
from gateway.ports import Delta
from gateway.watching import ChainEvent, Spans
from tests.gateway.output.reading import CUTS, TOOLS, split
from tests.gateway.scripted import Body, ReportingEngine, ask, events_of

ASK = {"messages": [{"role": "user", "content": "Hi"}], "stream": True, "seed": 3}
WATCHED = {"include_speculation": True}


async def chunks(body: Body) -> list[Any]:
    answer = await ask(body, ReportingEngine())
    assert answer.status_code == 200, answer.text
    *events, last = events_of(answer.text)
    assert last == "[DONE]"
    return events


@pytest.mark.parametrize(
    "options", [None, {"include_usage": True}, {"include_speculation": False}]
)
@pytest.mark.parametrize("asked", [ASK, {"prompt": "Hi", "stream": True, "seed": 3}])
async def test_a_stream_that_nobody_watches_is_the_watched_one_without_what_that_tells(
    options: dict[str, bool] | None, asked: Body
) -> None:
    plain = await chunks({**asked, "stream_options": options})
    reported = await chunks({**asked, "stream_options": {**(options or {}), **WATCHED}})

    usage = options is not None and "include_usage" in options
    rest = [c for c in reported if c["choices"] or (usage and c is reported[-1])]
    assert [without(c) for c in rest] == [without(c) for c in plain]
    assert not any("speculation" in c for c in plain)


def without(chunk: Body) -> str:
    """Return a chunk without what differs from one request to the next."""
    changes = ("id", "created", "speculation", "timings")
    return json.dumps({name: value for name, value in chunk.items() if name not in changes})


# Each character that a client is shown has the origin of its token, and each token counts.

ORIGINS = ("draft", "lookup", "target")
TEXT = "ab€\U0001f600c\u0301\n"


def expand(spans: Spans) -> list[str]:
    assert all(count > 0 for count, _ in spans)
    assert all(a[1] != b[1] for a, b in pairwise(spans))
    return [origin for count, origin in spans for _ in range(count)]


@given(
    text=st.text(TEXT, max_size=30),
    cuts=st.lists(st.integers(0, 200), max_size=12),
    commits=st.lists(st.integers(0, 40), max_size=6),
    stops=st.lists(st.text(TEXT, min_size=1, max_size=3), max_size=2),
    include=st.booleans(),
    draw=st.randoms(),
)
def test_the_origins_are_those_of_the_tokens_however_the_text_is_cut(
    text: str,
    cuts: list[int],
    commits: list[int],
    stops: list[str],
    include: bool,
    draw: object,
) -> None:
    pieces = [*split(text.encode(), cuts), b""]
    origins = [draw.choice(ORIGINS) for _ in pieces]  # type: ignore[attr-defined]
    reader = Detokeniser(
        pieces.__getitem__, StopConditions(strings=stops, is_shown=include), watched=True
    )

    shown, counted, tokens = list[TextDelta](), Counter[str](), 0
    for group in split(range(len(pieces)), commits):
        finish = "stop" if group.stop == len(pieces) else None
        chosen = tuple(origins[i] for i in group)
        delta = reader.read(Delta(tuple(group), finish=finish, origins=chosen))
        shown.append(delta)
        tokens += delta.tokens
        counted.update(delta.report.tokens)  # type: ignore[union-attr]
        assert len(expand(delta.report.text)) == len(delta.text)  # type: ignore[union-attr]
        if delta.finish:
            break

    visible = "".join(delta.text for delta in shown)
    starts = list(accumulate((len(each.encode()) for each in text), initial=0))
    owners = [origins[i] for i, piece in enumerate(pieces) for _ in piece]
    expected = [owners[start] for start in starts[: len(visible)]]
    assert text.startswith(visible)
    assert [o for delta in shown for o in expand(delta.report.text)] == expected  # type: ignore[union-attr]
    assert counted == Counter(origins[:tokens])


def test_the_chains_text_continues_the_character_that_is_being_shown() -> None:
    pieces = [b"\xe2\x82", b"\xac!", b"\xf0\x9f"]
    reader = Detokeniser(pieces.__getitem__, StopConditions(), watched=True)
    reader.read(Delta((0,), origins=("target",)))

    report = reader.read(Delta((), events=(ChainEvent(0, 1, 2, False, (1, 2)),))).report

    assert report is not None
    assert [event.text for event in report.events if isinstance(event, ChainEvent)] == ["€!"]


THOUGHT = "<think>\nSo.  Well, a city\n</think>\n\n"
ANSWERS = {
    "hermes": 'Let me see.\n<tool_call>\n{"name": "weather", "arguments": {"city": "Ulm"}}'
    '\n</tool_call>\n<tool_call>{"name": "now", "arguments": {}}</tool_call>',
    "llama": '{"name": "weather", "parameters": {"city": "Ulm"}}; {"name": "now", '
    '"parameters": {}}',
    "mistral": 'Hm. [TOOL_CALLS][{"name": "weather", "arguments": {"city": "Ulm"}}]',
    "qwen_coder": 'Hm.\n<tool_call>\n<function=weather>\n<parameter=city>\nU"lm\n</parameter>\n'
    "<parameter=days>\n3\n</parameter>\n</function>\n</tool_call>",
    "pythonic": '[weather(city="Ulm", days=3), now()]',
    "plain": 'I see <b>no call</b> {"a": 1} in this.',
}


def parser(form: ToolFormat, pieces: Sequence[str]) -> OutputParser:
    def parse(text, out):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
        yield from read_reasoning(text, out, Tags("<think>", "</think>"), opened=False)
        yield from form.read(text, out, TOOLS)

    reader = Detokeniser(lambda token: pieces[token].encode(), StopConditions(), watched=True)
    return OutputParser(reader, ParsedMessage(lambda: "id"), parse)


def read(
    answer: str, name: str, cuts: Sequence[int], commits: Sequence[int]
) -> list[TextDelta]:
    """Read an answer. The origin of each token is its place in the answer, as a text."""
    pieces = split(answer, cuts)
    reader = parser(FORMATS.get(name, FORMATS["hermes"]), pieces)
    starts = list(accumulate(map(len, pieces), initial=0))
    return [
        reader.read(
            Delta(
                tuple(group),
                finish="stop" if group.stop == len(pieces) else None,
                origins=tuple(str(starts[i]) for i in group),
            )
        )
        for group in split(range(len(pieces)), commits)
    ]


def spans_of(delta: TextDelta) -> Iterator[tuple[str, Spans]]:
    """Yield the texts that a delta shows, each with the origins of its characters."""
    assert delta.report is not None
    assert delta.parsed is not None
    yield delta.text, delta.report.text
    yield delta.parsed.reasoning, delta.report.reasoning


@pytest.mark.parametrize("name", ANSWERS)
@given(cuts=CUTS, commits=CUTS)
def test_spans_add_up_to_content_and_reasoning(
    name: str, cuts: list[int], commits: list[int]
) -> None:
    answer = THOUGHT + ANSWERS[name]

    deltas = read(answer, name, cuts, commits)

    counted = sum((Counter(d.report.tokens) for d in deltas if d.report), Counter())
    assert counted.total() == sum(delta.tokens for delta in deltas)
    for delta in deltas:
        for text, spans in spans_of(delta):
            assert len(expand(spans)) == len(text)


@pytest.mark.parametrize("name", ANSWERS)
@given(commits=CUTS)
def test_content_and_reasoning_have_the_origins_of_their_own_tokens(
    name: str, commits: list[int]
) -> None:
    answer = THOUGHT + ANSWERS[name]
    every_character = range(len(answer) + 1)

    shown = list[tuple[str, str]]()
    for delta in read(answer, name, every_character, commits):
        for text, spans in spans_of(delta):
            shown += zip(text, expand(spans), strict=True)

    assert shown
    assert all(answer[int(origin)] == character for character, origin in shown)
