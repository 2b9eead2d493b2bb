"""What a chat template and a vocabulary tell of how a model writes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from weakref import ref

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.grammars import Tags
from gateway.output.answer_grammar import AllowedOutput
from gateway.output.detokenise import Detokeniser, Piece, StopConditions, TextDelta
from gateway.output.formats.base import pass_content
from gateway.output.formats.hermes import Hermes
from gateway.output.formats.mistral import Mistral
from gateway.output.message import ParsedMessage
from gateway.output.output_format import (
    FORMATS,
    CallRules,
    FormatName,
    OutputFormat,
    OutputFormats,
    choose,
)
from gateway.output.reading import Incoming, Steps
from gateway.output.reasoning import is_opened, read_reasoning, tags_of
from gateway.ports import Delta
from tests.gateway.output.reading import (
    CUTS,
    THINK,
    TOOLS,
    Read,
    grouped,
    parse,
    run,
    split,
)
from tests.gateway.scripted import END, ByteTokenizer

BOS = END + 1


@dataclass(eq=False)
class MarkedTokenizer(ByteTokenizer):
    """Has special tokens, which are hidden, and a BOS before every prompt."""

    markers: Sequence[str] = ()
    encoded: list[str] = field(default_factory=list)

    def encode(self, text: str, *, special: bool = True, begin: bool = True) -> list[int]:
        self.encoded.append(text)
        if text in self.markers:
            return [BOS, BOS + 1 + self.markers.index(text)]
        return [BOS, *text.encode()]

    def tokens(self, text: str) -> list[int]:
        """Return the tokens of a text that a model writes."""
        for at, marker in enumerate(self.markers):
            if text.startswith(marker):
                return [BOS + 1 + at, *self.tokens(text.removeprefix(marker))]
        return [text.encode()[0], *self.tokens(text[1:])] if text else []


def detokeniser(piece: Piece) -> Detokeniser:
    return Detokeniser(piece, StopConditions(frozenset({END})))


def output_format(template: str, *markers: str) -> OutputFormat:
    return OutputFormats().find(MarkedTokenizer(template=template, markers=markers))


def read(output_format: OutputFormat, text: str, prompt: str = "", **wanted: bool) -> Read:
    """Return the message for a text, whose markers are special tokens."""
    tokenizer = output_format.tokenizer
    assert isinstance(tokenizer, MarkedTokenizer)
    reader = output_format.reader(
        detokeniser, tokenizer.tokens(prompt), CallRules(TOOLS, **wanted)
    )
    message = Read()
    for token in tokenizer.tokens(text):
        delta = reader.read(Delta((token,)))
        assert delta.parsed is not None
        message.add(delta.text, delta.parsed)
    return message


def test_markers_that_are_special_tokens_are_seen_by_the_parser() -> None:
    mistral = output_format("[TOOL_CALLS]", "[TOOL_CALLS]", "[ARGS]")

    message = read(mistral, '[TOOL_CALLS]now[ARGS]{"a": 1}')

    assert message.decoded == [("now", {"a": 1})]
    assert len(message.calls[0].id) == 9
    assert read(mistral, "so [TOOL_CALLS]").content == "so"


def test_a_special_token_that_no_parser_needs_stays_hidden() -> None:
    hermes = output_format("<tool_call>", "<|other|>", "[TOOL_CALLS]")

    assert read(hermes, "a<|other|>b[TOOL_CALLS]c").content == "abc"


def test_reasoning_that_the_prompt_opens_is_found_by_its_special_token() -> None:
    thinking = output_format("<think>", "<think>", "</think>")

    assert read(thinking, "why</think>\n\nHi", "ai:<think>\n") == Read("Hi", "why")
    assert read(thinking, "Hi", "ai:<think>\n\n</think>\n\n") == Read("Hi")


def test_the_style_of_a_tokenizer_is_found_once() -> None:
    output_formats, tokenizer = OutputFormats(), MarkedTokenizer(template="<think><tool_call>")

    found = output_formats.find(tokenizer)

    assert output_formats.known(tokenizer) == found
    assert output_formats.known(MarkedTokenizer()) is None
    markers = ["</think>", "</tool_call>", "<think>", "<tool_call>"]
    assert sorted(set(tokenizer.encoded)) == [*markers, "<|>"]  # the last by infill
    assert found.capabilities == ("completion", "tools", "thinking", "insert")


def test_a_style_does_not_keep_its_tokenizer() -> None:
    output_formats, tokenizer = OutputFormats(), MarkedTokenizer(template="<think><tool_call>")
    dies, capabilities = (
        ref(tokenizer),
        output_formats.remember("digest", output_formats.find(tokenizer)),
    )

    del tokenizer

    assert dies() is None
    assert output_formats.capabilities["digest"] == capabilities


def test_the_setting_replaces_what_the_template_tells() -> None:
    tokenizer = ByteTokenizer(template="<tool_call>")

    assert isinstance(OutputFormats().find(tokenizer).format, Hermes)
    assert isinstance(OutputFormats().find(tokenizer, "mistral").format, Mistral)


@pytest.mark.parametrize(
    ("template", "name"),
    [
        ("within <tool_call></tool_call> XML tags", "hermes"),
        ("<tool_call>\n<function=example_function_name>\n<parameter=x>", "qwen_coder"),
        ("{{ '[TOOL_CALLS]' + tool['function']['name'] + '[ARGS]' }}", "mistral"),
        ('{"name": function name, "parameters": dictionary of argument name}', "llama"),
        ('{{ "<|python_tag|>" }}', "llama"),
        ("format: [func_name1(params_name1=params_value1), func_name2()]", "pythonic"),
        ("{% for message in messages %}", "hermes"),
        ("", "hermes"),
    ],
)
def test_the_template_tells_the_format(template: str, name: FormatName) -> None:
    assert choose(template) == name
    assert name in FORMATS


def test_a_constraint_stays_as_it_is_where_all_of_the_answer_is_content() -> None:
    json = {"json": {"type": "object"}}
    wanted = AllowedOutput({}, required=False, parallel=True, content=json)

    assert output_format("").constraint((), wanted) is json
    assert output_format("<think>").constraint((), wanted, splits_reasoning=False) is json
    assert list(output_format("<think>").constraint((), wanted) or ()) == ["grammar"]


# Deltas become messages: counted, with log-probabilities, and however they group tokens.

CALL = b'<tool_call>{"name": "weather", "arguments": {"city": "Oslo"}}</tool_call>'


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


BETWEEN = "<think>why</think>\n%s\n" + CALL.decode()


@pytest.mark.parametrize(
    ("text", "content"),
    [
        (BETWEEN % "  Hi", "Hi"),
        (BETWEEN % "é", "é"),
        (BETWEEN % "a <b> c", "a <b> c"),
        (BETWEEN % "<tool_call>no</tool_call>", "<tool_call>no</tool_call>"),
        (" Hi \n", " Hi \n"),
    ],
)
def test_the_log_probabilities_are_those_of_the_content(text: str, content: str) -> None:
    shown = parse(grouped(text.encode(), logprobs=True))

    pieces = b"".join(entry.piece for delta in shown for entry in delta.entries)
    assert pieces.decode() == whole(shown).content == content


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


# Reasoning is what comes first, between its tags, without the space around it.

PIECES = st.sampled_from(["<think>", "</think>", "<", "th", " ", "\n", "why", "é"])


def reasoning_parse(text: Incoming, out: ParsedMessage, *, opened: bool) -> Steps[None]:
    yield from read_reasoning(text, out, THINK, opened=opened)
    yield from pass_content(text, out)


def split_reasoning(text: str, *, opened: bool = False) -> Read:
    return run(partial(reasoning_parse, opened=opened), list(text))[-1]


@given(parts=st.lists(PIECES, max_size=16), cuts=CUTS, opened=st.booleans())
def test_any_split_of_a_text_gives_the_same_reasoning(
    parts: list[str], cuts: list[int], opened: bool
) -> None:
    text = "".join(parts)

    message = run(partial(reasoning_parse, opened=opened), split(text, cuts))[-1]

    assert message == split_reasoning(text, opened=opened)


def test_reasoning_is_passed_on_as_it_comes() -> None:
    pieces = ["<think>", "\nfirst", " second \n", "third", "</thi", "nk>", "\n\n", "Hi"]

    moments = run(partial(reasoning_parse, opened=False), pieces)

    texts = [(moment.reasoning, moment.content) for moment in moments]
    assert texts[:4] == [
        ("", ""),
        ("first", ""),
        ("first second", ""),
        ("first second \nthird", ""),
    ]
    assert texts[6:8] == [("first second \nthird", ""), ("first second \nthird", "Hi")]


@pytest.mark.parametrize(
    ("prompt", "opened"),
    [
        ("<|assistant|>\n<think>\n", True),
        ("<|assistant|><think>", True),
        ("<|assistant|>\n<think>\n\n</think>\n\n", False),
        ("<|assistant|>\n", False),
        ("", False),
    ],
)
def test_the_end_of_the_prompt_shows_whether_reasoning_is_open(
    prompt: str, opened: bool
) -> None:
    pieces = [prompt[at : at + 6].encode() for at in range(0, len(prompt), 6)]

    assert is_opened(THINK, range(len(pieces)), pieces.__getitem__) is opened


@pytest.mark.parametrize(
    ("template", "tags"),
    [
        ("{{ '<think>\\n' }}", THINK),
        ("{% if '</think>' in content %}", THINK),
        ("[THINK]", Tags("[THINK]", "[/THINK]")),
        ("{{ messages }}", None),
    ],
)
def test_the_template_tells_the_tags(template: str, tags: Tags | None) -> None:
    assert tags_of(template) == tags
