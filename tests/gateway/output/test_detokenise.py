"""Tokens become text, however they are grouped: never a stop string, never part of a character.
Each character of a watched text has the origin of its token."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import EngineFault
from gateway.grammars import Tags
from gateway.output.detokenise import Detokeniser, StopConditions, StopStrings, TextDelta
from gateway.output.formats.base import ToolFormat
from gateway.output.message import ParsedMessage
from gateway.output.output_format import FORMATS
from gateway.output.output_parser import OutputParser
from gateway.output.reasoning import read_reasoning
from gateway.ports import Delta
from gateway.watching import ChainEvent, Spans
from speculation.messages import TokenLogprob
from tests.gateway.output.reading import CUTS, TOOLS, split

# Any split of tokens shows the same text: never a stop string, never part of a character.

END, EXCLAIMED = 256, 257


STOPPING_PIECES = {END: b"", EXCLAIMED: b"!"}
LETTERS = st.text(alphabet="abé€😀", max_size=24)
STOPS = st.lists(st.text(alphabet="abé€", min_size=1, max_size=4), max_size=4)


def detokeniser(
    stops: Sequence[str] = (), *, include_stop: bool = False, min_tokens: int = 0
) -> Detokeniser:
    return Detokeniser(
        lambda token: bytes([token]) if token < END else STOPPING_PIECES[token],
        StopConditions(frozenset(STOPPING_PIECES), stops, min_tokens, include_stop),
    )


def delta(data: bytes) -> Delta:
    return Delta(tuple(data), tuple(TokenLogprob(-1.0, ((b, -1.0),)) for b in data))


def test_a_stop_token_is_counted_and_not_shown() -> None:
    read = detokeniser().read(Delta((ord("a"), END), finish="stop"))

    assert (read.text, read.tokens, read.finish) == ("a", 2, "stop")


@pytest.mark.parametrize(
    ("min_tokens", "text"),
    [(0, "a"), (2, "a"), (3, "abcxa"), (6, "abcxa"), (7, "abcxabca"), (10, "abcxabcabc")],
)
def test_a_stop_string_within_the_least_tokens_ends_nothing(min_tokens: int, text: str) -> None:
    tokens = tuple(b"abcxabcabc")
    whole, split = (detokeniser(["bc"], min_tokens=min_tokens) for _ in range(2))

    read = whole.read(Delta(tokens, finish="length"))
    pieces = [split.read(Delta((token,))).text for token in tokens[: read.tokens]]

    assert read.text == "".join(pieces) == text


def test_log_probabilities_wait_for_the_text_of_their_token() -> None:
    choice = detokeniser(["stop"])

    read = [choice.read(delta(data)).entries for data in (b"a st", b"\xc3", b"\xa9")]

    assert [[(entry.piece, entry.offset) for entry in entries] for entries in read] == [
        [(b"a", 0), (b" ", 1)],
        [],
        [(b"s", 2), (b"t", 3), (b"\xc3", 4), (b"\xa9", 4)],
    ]


def test_log_probabilities_of_a_stop_string_are_never_shown() -> None:
    choice = detokeniser(["st"])

    read = [choice.read(delta(b"as")), choice.read(delta(b"ty"))]

    assert [entry.piece for part in read for entry in part.entries] == [b"a"]
    assert read[1].finish == "stop"


def test_log_probabilities_for_some_tokens_only_are_the_engines_fault() -> None:
    incomplete = Delta((1, 2), (TokenLogprob(-1.0, ()),))

    with pytest.raises(EngineFault):
        detokeniser().read(incomplete)


def read(
    chunks: Sequence[bytes], stops: Sequence[str], *, include_stop: bool = False
) -> tuple[list[str], int]:
    """Return the shown texts and the counted tokens; tokens are bytes, `chunks` groups them."""
    choice = detokeniser(stops, include_stop=include_stop)
    shown, tokens = [], 0
    for chunk in [*chunks, None]:
        delta = Delta((), finish="length") if chunk is None else Delta(tuple(chunk))
        read_now = choice.read(delta)
        shown.append(read_now.text)
        tokens += read_now.tokens
        if read_now.finish is not None:
            break
    return shown, tokens


def first_stop(text: str, stops: Sequence[str], *, include_stop: bool = False) -> str:
    """Cut at the stop string that is complete first, by trying every end."""
    for end in range(len(text) + 1):
        starts = [end - len(stop) for stop in stops if text[:end].endswith(stop)]
        if starts:
            return text[: end if include_stop else min(starts)]
    return text


@given(st.binary(max_size=24), CUTS, STOPS)
def test_any_grouping_of_tokens_gives_the_same_text_and_usage(
    data: bytes, cuts: list[int], stops: list[str]
) -> None:
    shown, tokens = read(split(data, cuts), stops)
    whole, whole_tokens = read([data], stops)

    assert "".join(shown) == "".join(whole)
    assert tokens == whole_tokens


@given(LETTERS, CUTS, STOPS, st.booleans())
def test_the_text_ends_at_the_stop_string_that_is_complete_first(
    text: str, cuts: list[int], stops: list[str], include_stop: bool
) -> None:
    shown, _ = read(split(text.encode(), cuts), stops, include_stop=include_stop)

    assert "".join(shown) == first_stop(text, stops, include_stop=include_stop)


@given(LETTERS, STOPS)
def test_the_stop_string_that_ended_the_text_is_told(text: str, stops: list[str]) -> None:
    read_now = detokeniser(stops).read(Delta(tuple(text.encode()), finish="length"))

    assert read_now.stop in {None, *stops}
    assert text.startswith(read_now.text + (read_now.stop or ""))
    assert (read_now.stop is None) == (read_now.text == text)
    assert read_now.finish == ("length" if read_now.stop is None else "stop")


@given(st.binary(max_size=24), CUTS)
def test_bytes_that_are_no_text_decode_as_a_whole_would(data: bytes, cuts: list[int]) -> None:
    shown, _ = read(split(data, cuts), ())

    assert "".join(shown) == data.decode("utf-8", "replace")


@given(LETTERS)
def test_without_stop_strings_every_whole_character_is_shown_at_once(text: str) -> None:
    shown, _ = read([character.encode() for character in text], ())

    assert shown == [*text, ""]


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        StopStrings(["a", ""], include_stop=False)


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


def read_answer(
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

    deltas = read_answer(answer, name, cuts, commits)

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
    for delta in read_answer(answer, name, every_character, commits):
        for text, spans in spans_of(delta):
            shown += zip(text, expand(spans), strict=True)

    assert shown
    assert all(answer[int(origin)] == character for character, origin in shown)
