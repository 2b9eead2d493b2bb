"""Reasoning is what comes first, between its tags, without the space around it."""

from __future__ import annotations

from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from picospec.gateway.grammars import Tags
from picospec.gateway.output.formats.base import pass_content
from picospec.gateway.output.message import Message
from picospec.gateway.output.reading import Incoming, Steps, is_opened, read_reasoning, tags_of
from tests.gateway.output.reading import CUTS, Read, run, split

THINK = Tags("<think>", "</think>")
PIECES = st.sampled_from(["<think>", "</think>", "<", "th", " ", "\n", "why", "é"])


def parse(text: Incoming, out: Message, *, opened: bool) -> Steps[None]:
    yield from read_reasoning(text, out, THINK, opened=opened)
    yield from pass_content(text, out)


def split_reasoning(text: str, *, opened: bool = False) -> Read:
    return run(partial(parse, opened=opened), list(text))[-1]


@pytest.mark.parametrize(
    ("text", "opened", "reasoning", "content"),
    [
        ("<think>\nwhy \n\nso\n</think>\n\nHi\n", False, "why \n\nso", "Hi\n"),
        (" <think>why</think>Hi", False, "why", "Hi"),
        ("\nwhy\n</think>\n\nHi", True, "why", "Hi"),
        ("<think>why</think>Hi", True, "why", "Hi"),
        ("<think>\n\n</think>\n\nHi", False, "", "Hi"),
        ("Hi <think>no</think>", False, "", "Hi <think>no</think>"),
        (" Hi", False, "", " Hi"),
        ("</think>", False, "", "</think>"),
        ("<think>why\n", False, "why", ""),
        ("why", True, "why", ""),
        ("<thi", False, "", "<thi"),
        ("", False, "", ""),
    ],
)
def test_reasoning_comes_first_and_between_the_tags(
    text: str, opened: bool, reasoning: str, content: str
) -> None:
    assert split_reasoning(text, opened=opened) == Read(content, reasoning)


@given(parts=st.lists(PIECES, max_size=16), cuts=CUTS, opened=st.booleans())
def test_any_split_of_a_text_gives_the_same_reasoning(
    parts: list[str], cuts: list[int], opened: bool
) -> None:
    text = "".join(parts)

    message = run(partial(parse, opened=opened), split(text, cuts))[-1]

    assert message == split_reasoning(text, opened=opened)


def test_reasoning_is_passed_on_as_it_comes() -> None:
    pieces = ["<think>", "\nfirst", " second \n", "third", "</thi", "nk>", "\n\n", "Hi"]

    moments = run(partial(parse, opened=False), pieces)

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
