"""Deltas become messages: counted, with log-probabilities, and however they group tokens."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from picospec.gateway.output.detokenise import Detokeniser, Piece, TextDelta
from picospec.gateway.output.style import Styles
from picospec.gateway.ports import Delta, Statistics
from picospec.speculation.messages import TokenLogprob
from tests.gateway.output.reading import CUTS, TOOLS, Read, split
from tests.gateway.scripted import END, ByteTokenizer

TEMPLATE = "<think></think><tool_call></tool_call>"
CALL = b'<tool_call>{"name": "weather", "arguments": {"city": "Oslo"}}</tool_call>'


def parse(
    deltas: Sequence[Delta], stops: Sequence[str] = (), *, parallel: bool = True
) -> list[TextDelta]:
    """Return what the Deltas show, up to the finish."""
    style = Styles().find(ByteTokenizer(template=TEMPLATE))

    def detokeniser(piece: Piece) -> Detokeniser:
        return Detokeniser(piece, stop_tokens=frozenset({END}), stops=stops)

    reader = style.reader(detokeniser, (), TOOLS, parallel=parallel)
    shown = []
    for delta in deltas:
        shown.append(reader.read(delta))
        if shown[-1].finish is not None:
            break
    return shown


def grouped(data: bytes, cuts: Sequence[int] = (), *, logprobs: bool = False) -> list[Delta]:
    """Return Deltas with the bytes as tokens, END as the last token, and a finish."""
    tokens = [*data, END]
    return [
        Delta(
            tuple(tokens[at] for at in group),
            tuple(TokenLogprob(-1.0, ()) for _ in group) if logprobs else None,
            finish="stop" if group.stop == len(tokens) else None,
            statistics=Statistics(target_passes=group.stop),
        )
        for group in split(range(len(tokens)), cuts)
    ]


def whole(shown: Sequence[TextDelta]) -> Read:
    read = Read()
    for delta in shown:
        assert delta.parsed is not None
        read.add(delta.text, delta.parsed)
    for call in read.calls:
        call.id = ""
    return read


def thoughts(shown: Sequence[TextDelta]) -> int:
    return sum(delta.parsed.reasoning_tokens for delta in shown if delta.parsed)


PARTS = st.sampled_from(
    [b"<think>", b"</think>", CALL, b"ab", b" ", "é€".encode(), b"<to", b"{"]
)


@given(parts=st.lists(PARTS, max_size=8), cuts=CUTS, parallel=st.booleans(), stop=st.booleans())
def test_any_grouping_of_tokens_gives_the_same_message_usage_and_log_probabilities(
    parts: list[bytes], cuts: list[int], parallel: bool, stop: bool
) -> None:
    data, stops = b"".join(parts), ["b<", "é"] if stop else []

    some = parse(grouped(data, cuts, logprobs=True), stops, parallel=parallel)
    each = parse(grouped(data, range(999), logprobs=True), stops, parallel=parallel)

    assert whole(some) == whole(each)
    assert [e for delta in some for e in delta.entries] == [
        e for delta in each for e in delta.entries
    ]
    assert some[-1].finish == each[-1].finish
    assert sum(delta.tokens for delta in some) == sum(delta.tokens for delta in each)
    assert thoughts(some) == thoughts(each)


def test_reasoning_content_and_calls_are_told_apart() -> None:
    [delta] = parse(grouped(b"<think>\nwhy\n</think>\n\nHi.\n" + CALL))

    read = whole([delta])
    assert (read.reasoning, read.content) == ("why", "Hi.")
    assert read.decoded == [("weather", {"city": "Oslo"})]
    assert (delta.finish, delta.statistics) == ("tool_calls", Statistics(target_passes=100))
    assert (thoughts([delta]), delta.tokens) == (len("<think>\nwhy\n</think>") - 6, 100)


def test_a_call_inside_reasoning_is_reasoning() -> None:
    shown = parse(grouped(b"<think>" + CALL + b"</think>Hi"))

    assert (whole(shown).content, whole(shown).calls) == ("Hi", [])
    assert shown[-1].finish == "stop"


def test_the_choice_ends_with_its_first_call_if_calls_must_not_be_parallel() -> None:
    deltas = [Delta(tuple(CALL + CALL), statistics=Statistics(3)), Delta((), finish="length")]

    [delta] = parse(deltas, parallel=False)

    assert len(whole([delta]).calls) == 1
    assert (delta.finish, delta.statistics) == ("tool_calls", Statistics(3))
    assert delta.tokens < len(CALL)


@pytest.mark.parametrize(
    "data", [b"  Hi", "é".encode(), b"a <b> c", b"<tool_call>no</tool_call>"]
)
def test_the_log_probabilities_are_those_of_the_content(data: bytes) -> None:
    prefix = b"<think>why</think>\n"

    shown = parse(grouped(prefix + data + b"\n" + CALL, logprobs=True))

    pieces = b"".join(entry.piece for delta in shown for entry in delta.entries)
    assert pieces.decode() == whole(shown).content == data.decode().strip()


def test_content_that_is_only_content_has_all_its_log_probabilities() -> None:
    shown = parse(grouped(b" Hi \n", logprobs=True))

    assert b"".join(entry.piece for delta in shown for entry in delta.entries) == b" Hi \n"


@pytest.mark.parametrize("size", [1, 7, 100])
@pytest.mark.parametrize(
    ("text", "parallel", "finish"),
    [
        (CALL[:50], True, "length"),
        (CALL[:50], False, "length"),
        (CALL[:61], False, "tool_calls"),
        (CALL, False, "tool_calls"),
    ],
)
def test_the_only_call_that_may_be_made_ends_the_answer_unless_the_limit_cuts_it(
    text: bytes, parallel: bool, finish: str, size: int
) -> None:
    starts = range(0, len(text), size)
    deltas = [
        Delta(tuple(text[a : a + size]), finish="length" if a == starts[-1] else None)
        for a in starts
    ]

    shown = parse(deltas, parallel=parallel)

    assert whole(shown).calls[0].name == "weather"
    assert shown[-1].finish == finish
