"""A stream tells of speculation to those who ask, and is otherwise what it was."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import AsyncGenerator, Iterator, Sequence
from itertools import accumulate, pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from picospec.gateway.grammars import Tags
from picospec.gateway.output.detokenise import Detokeniser, TextDelta
from picospec.gateway.output.formats.base import Format
from picospec.gateway.output.message import Message
from picospec.gateway.output.reading import read_reasoning
from picospec.gateway.output.style import FORMATS, OutputParser
from picospec.gateway.ports import Delta, Job
from picospec.gateway.watching import Chain, LinkUse, Pass, Spans
from tests.gateway.output.reading import CUTS, TOOLS, split
from tests.gateway.scripted import COUNTED, END, Body, ScriptedEngine, ask, events_of

ASK = {"messages": [{"role": "user", "content": "Hi"}], "stream": True, "seed": 3}
WATCHED = {"include_speculation": True}
WATCHING = {**ASK, "stream_options": WATCHED}
CHAIN = Chain(2, 1, 3, False, tuple(b"ck "))
PASS = Pass(1, 4, 2, 3, "recovered", 20.0, 1.5, None, 18.0)
LINK = LinkUse(31.5, 40, 60, 0, 1)


class ReportingEngine(ScriptedEngine):
    """It tells of speculation whether it was asked or not."""

    async def generate(self, job: Job) -> AsyncGenerator[Delta]:
        self.jobs.append(job)
        yield Delta(tuple(b"Q"), origins=("target",), statistics=COUNTED)
        yield Delta((), events=(CHAIN, LINK), statistics=COUNTED)
        tokens = tuple("uiç".encode())
        origins = ("draft", "lookup", "ahead", "target")
        yield Delta(tokens, origins=origins, events=(PASS,), statistics=COUNTED)
        yield Delta((END,), finish="stop", origins=("draft",), statistics=COUNTED)


async def chunks(body: Body) -> list[Any]:
    answer = await ask(body, ReportingEngine())
    assert answer.status_code == 200, answer.text
    *events, last = events_of(answer.text)
    assert last == "[DONE]"
    return events


async def test_every_chunk_with_text_says_where_it_is_from() -> None:
    reported = [c for c in await chunks(WATCHING) if "speculation" in c]

    texts = [c["speculation"] for c in reported if c["choices"]]
    assert texts == [
        {"spans": [[1, "target"]], "tokens": {"target": 1}},
        {
            "spans": [[1, "draft"], [1, "lookup"], [1, "ahead"]],
            "tokens": {"draft": 1, "lookup": 1, "ahead": 1, "target": 1},
        },
        {"tokens": {"draft": 1}},
    ]
    assert reported[-2]["choices"][0]["finish_reason"] == "stop"


async def test_events_come_in_chunks_of_their_own_before_the_text_they_are_about() -> None:
    reported = await chunks(WATCHING)

    events = [c["speculation"] for c in reported if not c["choices"]]
    assert events[:3] == [
        {
            "event": "chain", "index": 0, "epoch": 2, "position": 1, "tokens": 3,
            "broken": False, "text": "ck ", "drafted": 0,
        },
        {
            "event": "link", "index": 0, "rtt_ms": 31.5, "bytes_up": 40, "bytes_down": 60,
            "verifier": 0, "reopened": 1,
        },
        {
            "event": "pass", "index": 0, "position": 1, "rows": 4, "accepted": 2,
            "committed": 3, "beyond": "recovered", "pass_ms": 20.0, "waited_ms": 1.5,
            "gap_ms": None, "cloud_row_ms": 18.0,
        },
    ]  # fmt: skip
    names = [c["speculation"].get("event", "text") for c in reported if "speculation" in c]
    assert names == ["text", "chain", "link", "pass", "text", "text", "totals"]


@pytest.mark.parametrize("options", [WATCHED, {**WATCHED, "include_usage": True}])
async def test_the_last_chunk_has_the_totals(options: dict[str, bool]) -> None:
    reported = await chunks({**ASK, "n": 2, "stream_options": options})

    totals = reported[-1]["speculation"]
    speed = totals.pop("tokens_per_s")
    assert speed > 0
    assert totals == {
        "event": "totals",
        "tokens": {"draft": 4, "lookup": 2, "ahead": 2, "target": 4},
        "passes": 8, "rows": 32, "drafted": 24, "accepted": 14, "acceptance": 14 / 24,
        "bytes_up": 80, "bytes_down": 120, "bytes_per_token": 200 / 12, "rtt_ms": 31.5,
        "cloud_row_ms": 18.0, "reopened": 2,
    }  # fmt: skip
    assert reported[-1]["choices"] == []
    assert ("usage" in reported[-1]) == ("include_usage" in options)
    if "usage" in reported[-1]:
        assert reported[-1]["usage"]["completion_tokens"] == sum(totals["tokens"].values())


async def test_each_choice_has_events_and_counts_of_its_own() -> None:
    reported = await chunks({**WATCHING, "n": 2})

    counted = {0: Counter[str](), 1: Counter[str]()}
    for chunk in reported[:-1]:
        speculation = chunk.get("speculation", {})
        if chunk["choices"]:
            counted[chunk["choices"][0]["index"]].update(speculation.get("tokens", {}))
    indices = [c["speculation"]["index"] for c in reported[:-1] if not c["choices"]]
    assert Counter(indices) == {0: 3, 1: 3}
    assert counted[0] == counted[1] == {"draft": 2, "lookup": 1, "ahead": 1, "target": 2}


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


async def test_characters_of_an_echoed_prompt_are_of_no_token() -> None:
    body = {"prompt": "Hi", "stream": True, "echo": True, "stream_options": WATCHED}

    first = next(c for c in await chunks(body) if c["choices"])

    assert first["choices"][0]["text"] == "HiQ"
    assert first["speculation"]["spans"] == [[2, "prompt"], [1, "target"]]
    assert first["speculation"]["tokens"] == {"target": 1}


async def test_an_engine_without_drafts_has_the_target_for_all() -> None:
    engine = ScriptedEngine()
    answer = await ask(WATCHING, engine)

    assert engine.jobs[0].watched
    *speculation, _ = events_of(answer.text)
    spans = [s for c in speculation for s in c.get("speculation", {}).get("spans", [])]
    assert spans == [[2, "target"], [6, "target"]]
    totals = speculation[-1]["speculation"]
    assert totals["tokens"] == {"target": 9}
    assert totals["bytes_up"] is totals["rtt_ms"] is totals["cloud_row_ms"] is None


async def test_an_answer_that_is_not_streamed_tells_nothing() -> None:
    engine = ReportingEngine()
    answer = await ask({**WATCHING, "stream": False}, engine)

    assert not engine.jobs[0].watched
    assert "speculation" not in answer.json()


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
        pieces.__getitem__, stop_tokens=frozenset(), stops=stops,
        include_stop=include, watched=True,
    )  # fmt: skip

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
    reader = Detokeniser(pieces.__getitem__, stop_tokens=frozenset(), stops=(), watched=True)
    reader.read(Delta((0,), origins=("target",)))

    report = reader.read(Delta((), events=(Chain(0, 1, 2, False, (1, 2)),))).report

    assert report is not None
    assert [event.text for event in report.events if isinstance(event, Chain)] == ["€!"]


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


def parser(form: Format, pieces: Sequence[str]) -> OutputParser:
    def parse(text, out):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
        yield from read_reasoning(text, out, Tags("<think>", "</think>"), opened=False)
        yield from form.read(text, out, TOOLS)

    reader = Detokeniser(
        lambda token: pieces[token].encode(), stop_tokens=frozenset(), stops=(), watched=True
    )
    return OutputParser(reader, Message(lambda: "id"), parse)


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
