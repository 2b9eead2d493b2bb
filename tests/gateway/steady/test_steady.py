"""A Pacer shows the tokens of a burst one after another, and none later than the next burst."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import aclosing
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from picospec.gateway.doors.chat import ChatRequest
from picospec.gateway.errors import EngineFault, Unavailable
from picospec.gateway.output.detokenise import TextDelta
from picospec.gateway.output.stream import (
    MAX_DELAY_S,
    ChoiceStream,
    Pacer,
    Steady,
    singly,
    together,
)
from picospec.gateway.ports import Delta
from tests.gateway.scripted import Body, ScriptedEngine, ask, events_of
from tests.gateway.steady.virtual_time import run
from tests.gateway.test_watched_stream import ReportingEngine

GAPS_S = st.floats(0.0, 5.0)
SHOWS = st.lists(st.booleans(), min_size=1, max_size=5)
BURSTS = st.lists(st.tuples(GAPS_S, SHOWS), min_size=1, max_size=6)

Bursts = list[tuple[float, list[bool]]]
"""Return of each burst the time since the last one, and which of its items show something."""

Item = tuple[int, int, bool]
"""Its burst, its place in that, and whether it shows."""


def paced(bursts: Bursts) -> tuple[list[float], dict[Item, float]]:
    """Return when each burst arrived, and when each item was shown, in that order."""
    pacer = Pacer[Item](lambda item: item[2])
    now, arrivals, shown = 0.0, list[float](), dict[Item, float]()
    for burst, (gap_s, shows) in enumerate(bursts):
        now += gap_s
        while (due_s := pacer.due_s) is not None and due_s < now:
            due = pacer.due(due_s)
            assert due
            shown |= dict.fromkeys(due, due_s)
        items = [(burst, place, shown) for place, shown in enumerate(shows)]
        shown |= dict.fromkeys(pacer.add(items, now), now)
        arrivals.append(now)
    shown |= dict.fromkeys(pacer.flush(), now)
    assert pacer.due_s is None
    return arrivals, shown


def steady(interval_s: float, tokens: int, bursts: int = 4) -> list[float]:
    """Return when tokens are shown of bursts of one size that come at one pace."""
    return list(paced([(interval_s, [True] * tokens)] * bursts)[1].values())


@given(BURSTS)
def test_every_item_comes_out_once_and_in_order(bursts: Bursts) -> None:
    _, shown = paced(bursts)

    items = [(b, p, s) for b, (_, shows) in enumerate(bursts) for p, s in enumerate(shows)]
    assert list(shown) == items
    assert list(shown.values()) == sorted(shown.values())


@given(BURSTS)
def test_no_item_is_earlier_than_it_came_or_later_than_the_next_burst(bursts: Bursts) -> None:
    arrivals, shown = paced(bursts)

    for (burst, _, _), at_s in shown.items():
        later = [i for i in range(burst + 1, len(bursts)) if any(bursts[i][1])]
        until_s = arrivals[later[0]] if later else arrivals[-1]
        assert arrivals[burst] <= at_s <= until_s


@given(BURSTS)
def test_the_first_of_a_burst_waits_for_nothing(bursts: Bursts) -> None:
    arrivals, shown = paced(bursts)

    for burst, (_, shows) in enumerate(bursts):
        if True in shows:
            assert shown[burst, shows.index(True), True] == arrivals[burst]


@given(BURSTS)
def test_no_item_is_held_for_longer_than_the_limit(bursts: Bursts) -> None:
    arrivals, shown = paced(bursts)

    for (burst, _, shows), at_s in shown.items():
        if shows:
            assert at_s - arrivals[burst] <= MAX_DELAY_S


@given(st.floats(0.01, MAX_DELAY_S), st.integers(2, 8))
def test_at_an_even_pace_tokens_are_evenly_spaced(interval_s: float, tokens: int) -> None:
    shown = steady(interval_s, tokens)

    gaps_s = [later - sooner for sooner, later in pairwise(shown)]
    assert gaps_s[: tokens - 1] == [0.0] * (tokens - 1)  # no interval is known yet
    assert gaps_s[tokens : 3 * tokens - 1] == pytest.approx(
        [interval_s / tokens] * (2 * tokens - 1)
    )


def test_a_burst_that_comes_early_takes_what_is_held_with_it() -> None:
    bursts = [(0.0, [True]), (0.4, [True] * 4), (0.15, [True] * 2)]

    shown = list(paced(bursts)[1].values())

    assert shown == pytest.approx([0.0, 0.4, 0.5, 0.55, 0.55, 0.55, 0.55])


def test_an_item_that_shows_nothing_takes_no_step() -> None:
    bursts = [(0.0, [True]), (0.4, [False, True, False, True, False]), (1.0, [True])]

    shown = list(paced(bursts)[1].values())

    assert shown == pytest.approx([0.0, 0.4, 0.4, 0.4, 0.6, 0.6, 1.4])


def test_what_shows_nothing_is_no_burst_and_keeps_its_place() -> None:
    pacer = Pacer[str](str.isupper)
    pacer.add(["A"], 0.0)
    assert pacer.add(["B", "C"], 1.0) == ["B"]

    assert pacer.add(["event"], 1.1) == []
    assert pacer.due_s == pytest.approx(1.5)
    assert pacer.due(1.5) == ["C", "event"]
    assert pacer.add(["another"], 1.6) == ["another"]


# A steady stream is passed on at the pace it is made, whole, and leaves nothing behind.

PASS_S = 0.4
FINISH = TextDelta("", 0, finish="stop")
Shown = list[tuple[float, str]]


async def choice(
    bursts: Sequence[str], end: Exception | None = None, index: int = 0
) -> ChoiceStream:
    """Yield bursts of characters, a pass apart."""
    for burst in bursts:
        await asyncio.sleep(PASS_S)
        for character in burst:
            yield index, TextDelta(character, 1)
    if end is not None:
        raise end
    yield index, FINISH


async def show(*streams: ChoiceStream, into: list[Shown], steady: Steady) -> None:
    """Note what comes of each stream, and when (s)."""
    clock = asyncio.get_running_loop().time

    async with together(streams, steady.paced) as deltas:
        async for index, delta in deltas:
            if delta is not FINISH:
                into[index].append((pytest.approx(clock()), delta.text))


def test_a_burst_is_spread_over_a_pass_and_the_end_waits_for_nothing() -> None:
    shown: Shown = []

    run(show(choice(["a", "bcde", "fg", "hijk"]), into=[shown], steady=Steady()))

    assert shown == [
        (0.4, "a"),
        (0.8, "b"), (0.9, "c"), (1.0, "d"), (1.1, "e"),
        (1.2, "f"), (1.4, "g"),
        (1.6, "h"), (1.6, "i"), (1.6, "j"), (1.6, "k"),
    ]  # fmt: skip


def test_each_choice_has_a_pace_of_its_own() -> None:
    shown: list[Shown] = [[], []]

    streams = choice(["a", "bc", "d"]), choice(["x", "y", "z"], index=1)
    run(show(*streams, into=shown, steady=Steady()))

    assert shown[0] == [(0.4, "a"), (0.8, "b"), (1.0, "c"), (1.2, "d")]
    assert shown[1] == [(0.4, "x"), (0.8, "y"), (1.2, "z")]


def test_the_first_burst_of_a_choice_has_the_pace_of_the_last_choice() -> None:
    steady = Steady()
    shown: Shown = []

    run(show(choice(["a", "b", "c"]), into=[[]], steady=steady))
    run(show(choice(["vwxy", "z"]), into=[shown], steady=steady))

    assert shown == [(0.4, "v"), (0.5, "w"), (0.6, "x"), (0.7, "y"), (0.8, "z")]


def test_an_error_comes_at_once_and_after_all_that_came_before_it() -> None:
    shown: Shown = []

    with pytest.raises(EngineFault, match="broken"):
        run(show(choice(["a", "bcd"], EngineFault("broken")), into=[shown], steady=Steady()))

    assert shown == [(0.4, "a"), (0.8, "b"), (0.8, "c"), (0.8, "d")]


def test_cancelling_closes_the_stream_while_tokens_are_held() -> None:
    closed: list[float] = []
    shown: Shown = []

    async def watched() -> ChoiceStream:
        try:
            async with aclosing(choice(["a", "bcde", "f"])) as deltas:
                async for delta in deltas:
                    yield delta
        finally:
            closed.append(asyncio.get_running_loop().time())

    async def left() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.95):
                await show(watched(), into=[shown], steady=Steady())

    run(left())

    assert closed == [0.95]
    assert shown == [(0.4, "a"), (0.8, "b"), (0.9, "c")]


async def test_a_delta_is_read_token_by_token_and_closing_closes_the_engine() -> None:
    closed: list[bool] = []

    async def engine() -> AsyncGenerator[Delta]:
        try:
            yield Delta((1, 2), origins=("draft", "target"))
            yield Delta((3,), finish="stop")
        finally:
            closed.append(True)

    async with aclosing(singly(engine())) as deltas:
        first, second = await anext(deltas), await anext(deltas)

    assert (first.tokens, first.origins) == ((1,), ("draft",))
    assert (second.tokens, second.origins) == ((2,), ("target",))
    assert closed == [True]


# A steady stream says what the stream of the same request says, in more chunks.

USER = {"role": "user", "content": "Hi"}
CHAT = {"messages": [USER], "stream": True, "seed": 3}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
CALLS = (
    b'<think>why</think>so <tool_call>{"name": "f", "ar',
    b'guments": {"a": "\xc3\xa7"}}</tool_call>',
)


async def events(engine: ScriptedEngine, body: Body, options: dict[str, bool]) -> list[Any]:
    """Return the stream's chunks, and "[DONE]" if it ends with that."""
    answer = await ask({**body, "stream_options": options}, engine, tool_format="hermes")
    assert answer.status_code == 200, answer.text
    assert "x-picospec-ignored" not in answer.headers
    return events_of(answer.text)


def joined(events: list[Any]) -> Body:
    """Return what the chunks say together, without what is of one request alone."""
    whole: Body = defaultdict(list)
    for event in events:
        if event == "[DONE]" or "error" in event:
            whole["end"].append(event)
            continue
        report = event.get("speculation", {})
        name = report.get("event")
        if name is not None:
            whole[name].append({**report, "tokens_per_s": None})
        whole["usage"] += [event["usage"]] if event.get("usage") else []
        for choice in event["choices"]:
            add(whole, choice, report)
    return whole


def add(whole: Body, choice: Body, report: Body) -> None:
    def to(name: str, items: Iterable[object] | None) -> None:
        whole[f"{name} {choice['index']}"] += list(items or ())

    delta = choice.get("delta", {})
    to("text", delta.get("content") or choice.get("text"))
    to("reasoning", delta.get("reasoning_content"))
    to("finish", [choice["finish_reason"]] if choice["finish_reason"] else ())
    logprobs = choice["logprobs"] or {}
    to("logprobs", logprobs.get("content") or logprobs.get("token_logprobs"))
    for call in delta.get("tool_calls", ()):
        to(f"name {call['index']}", [call["function"].get("name")] * ("id" in call))
        to(f"arguments {call['index']}", call["function"]["arguments"])
    to("origins", (o for n, o in report.get("spans", ()) for _ in range(n)))
    to("tokens", sorted(o for o, n in report.get("tokens", {}).items() for _ in range(n)))
    whole[f"tokens {choice['index']}"].sort()


REQUESTS = {
    "chat": (ScriptedEngine([b"Hel", b"lo \xf0\x9f", b"\x98\x80!"]), CHAT),
    "logprobs": (ScriptedEngine(), {**CHAT, "logprobs": True, "top_logprobs": 1}),
    "a stop string": (ScriptedEngine([b"ab", b"cSTOPde"]), {**CHAT, "stop": "STOP"}),
    "calls": (ScriptedEngine(CALLS), {**CHAT, "tools": [TOOL]}),
    "completions": (ScriptedEngine(), {"prompt": ["a", "b"], "n": 2, "stream": True}),
    "echo": (ScriptedEngine(), {"prompt": "Hi", "echo": True, "stream": True}),
    "drafts": (ReportingEngine(), CHAT),
    "an error": (ScriptedEngine([b"Hel", b"lo"], Unavailable("gone")), CHAT),
}


@pytest.mark.parametrize("watched", [False, True])
@pytest.mark.parametrize("request_", REQUESTS.values(), ids=REQUESTS)
async def test_it_says_what_the_stream_says_that_is_not_steady(
    request_: tuple[ScriptedEngine, Body], watched: bool
) -> None:
    engine, body = request_
    options = {"include_usage": True, "include_speculation": watched}

    plain = await events(engine, body, options)
    steady = await events(engine, body, {**options, "steady": True})

    assert joined(steady) == joined(plain)
    assert len(steady) > len(plain)


def test_an_answer_that_is_not_streamed_is_not_steady() -> None:
    options = {"steady": True}

    assert ChatRequest(messages=[USER], stream=True, stream_options=options).is_steady
    assert not ChatRequest(messages=[USER], stream_options=options).is_steady
    assert not ChatRequest(messages=[USER], stream=True, stream_options={}).is_steady
