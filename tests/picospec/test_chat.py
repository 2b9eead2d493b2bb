"""What a terminal shows of answers: a conversation, its commands, a question, a measurement."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import httpx
import pytest
from rich.live import Live

from picospec.answer_progress import AnswerProgress, Race
from picospec.answer_view import AnswerView, answer, coloured
from picospec.chat import ask_once, question
from picospec.chat_client import (
    ANSWER_CACHE,
    CHAT,
    DIRECT,
    ChatError,
    Chunk,
    ListedModel,
    Speculation,
    Turn,
    first_model,
    stream_answer,
)
from picospec.conversation import Conversation
from picospec.measure import PROMPTS, measure
from picospec.message_input import read_message
from tests.picospec.screen import Screen

DONE = "data: [DONE]\n\n"


def view_event(content: str, **report: object) -> str:
    """Return a chunk with content, and with what it tells of speculation."""
    choices = [{"delta": {"content": content}}] if content or not report else []
    said = {"speculation": report} if report else {}
    return f"data: {json.dumps({'choices': choices, **said})}\n\n"


def listing(*more: object) -> str:
    """Return a list of models: m, and further ones."""
    return json.dumps({"data": [{"id": "m", "owned_by": "picospec"}, *more]})


class Service:
    """Sends these events for each answer; or "one", then "two" and so on, and alone `alone`."""

    def __init__(
        self, *events: str, alone: str = "one", models: str = listing(), status: int = 200
    ) -> None:
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self._events, self._alone, self._models, self._status = events, alone, models, status

    def __call__(self) -> httpx.AsyncClient:
        transport = httpx.MockTransport(self._respond)
        return httpx.AsyncClient(transport=transport, base_url="http://edge")

    def _respond(self, request: httpx.Request) -> httpx.Response:
        path = request.url.path
        if path == "/v1/models":
            return httpx.Response(200, text=self._models)
        self.asked.append((path, json.loads(request.content)))
        if self._events:
            return httpx.Response(self._status, text="".join(self._events))
        words = ("one", "two", "three")[sum(path != DIRECT for path, _ in self.asked) - 1]
        said = view_event(self._alone if path == DIRECT else words, tokens={"draft": 50})
        totals = view_event("", event="totals", cloud_row_ms=1e6)
        return httpx.Response(200, text=f"{said}{said}{totals}{DONE}")


def typed(*lines: str) -> Callable[..., str]:
    left = iter(lines)

    def read(_: str = "") -> str:
        try:
            return next(left)
        except StopIteration:
            raise EOFError from None

    return read


def chat(service: Service, *lines: str) -> str:
    """Return what a conversation of these lines has shown."""
    screen = Screen()
    Conversation(service, screen, iter(range(7, 99)).__next__).run(typed(*lines))
    return screen.text


def bodies(service: Service, *fields: str) -> list[list[Any]]:
    return [[body.get(field) for field in fields] for _, body in service.asked]


def roles(messages: Iterable[dict[str, str]]) -> list[str]:
    return [f"{each['role'][0]}:{each['content']}" for each in messages]


def test_each_answer_has_a_seed_of_its_own_until_one_is_set() -> None:
    service = Service()

    shown = chat(service, "a", "/seed 42", "b", "/seed x", "/seed", "c")

    assert bodies(service, "seed") == [[7], [42], [8]]
    assert "a seed is a whole number, not x" in shown


def test_the_system_prompt_comes_first_until_it_is_taken_away() -> None:
    service = Service()

    chat(service, "a", "/system Be brief.", "b", "/system", "/etc/hosts is what?")

    roles_sent = [roles(body["messages"]) for _, body in service.asked]
    assert roles_sent[1] == ["s:Be brief.", "u:a", "a:oneone", "u:b"]
    assert [roles_sent[0], roles_sent[2][-1]] == [["u:a"], "u:/etc/hosts is what?"]


@pytest.mark.parametrize("name", ["chat.json", "chat.md"])
def test_a_conversation_is_saved_and_overwrites_nothing(name: str, tmp_path: Path) -> None:
    file = tmp_path / name

    shown = chat(Service(), "a", f"/save {file}", "b", f"/save {file}", f"/save {file}/x")

    saved = file.read_text()
    assert "two" not in saved
    expected = '"content": "oneone"' if name.endswith("json") else "## assistant\n\noneone"
    assert expected in saved
    assert "exists" in shown
    assert "Not a directory" in shown


@pytest.mark.parametrize(
    ("alone", "verdict"),
    [("one", "The same text, character for"), ("onX", "The texts differ after 2 characters")],
)
def test_a_proof_asks_the_large_model_alone_the_same(alone: str, verdict: str) -> None:
    service = Service(alone=alone)

    shown = chat(service, "/proof", "/system S", "a", "/system T", "/proof")

    (path, asked), (direct, again) = service.asked
    assert "no answer to prove yet" in shown
    assert verdict in shown
    assert (path, direct) == (CHAT, DIRECT)
    assert asked["seed"] == again["seed"]
    assert roles(asked["messages"]) == roles(again["messages"]) == ["s:S", "u:a"]
    assert "stream_options" not in again


SEVERAL = listing(
    {"id": "n", "owned_by": "picospec"},
    {"id": "o", "owned_by": "picospec", "state": "away"},
    {"id": "gpt", "owned_by": "picospec", "root": "m"},
)


@pytest.mark.system
def test_another_model_answers_once_it_is_chosen_and_proves_what_it_said() -> None:
    service = Service(models=SEVERAL)

    shown = chat(service, "a", "/model", "/model n", "b", "/model gpt", "/proof", "c")

    assert bodies(service, "model") == [["m"], ["n"], ["n"], ["gpt"]]
    assert "* m\n  n\n  o (away)\n" in shown
    assert all(f"{name} · " in shown for name in ("m", "n", "gpt"))
    assert " · " not in chat(Service(), "a")  # one model needs no name


@pytest.mark.parametrize(
    ("name", "reason"), [("x", "there is no model x"), ("o", "the model o is away")]
)
def test_a_model_that_cannot_answer_is_refused_with_a_list(name: str, reason: str) -> None:
    service = Service(models=SEVERAL)

    shown = " ".join(chat(service, f"/model {name}", "a").split())

    assert f"{reason}; there are m, n, o (away), gpt" in shown
    assert bodies(service, "model") == [["m"]]


@pytest.mark.parametrize(
    ("data", "first"),
    [
        ([{"id": "a", "state": "away"}, {"id": "b"}], "b"),
        ([{"id": "a", "state": "away"}, {"id": "b", "owned_by": "relayed"}], "a"),
        ([{"id": "a", "state": {"value": "loaded"}, "root": 3}, {"id": "b"}], "a"),
    ],
)
async def test_the_first_model_is_one_that_is_ready(data: list[object], first: str) -> None:
    async with Service(models=json.dumps({"data": data}))() as client:
        assert (await first_model(client)).id == first


@pytest.mark.system
def test_a_chat_ends_with_how_fast_it_was_where_that_is_known() -> None:
    last = chat(Service(), "a", "b").splitlines()[-1]

    assert "times as fast as the large model alone" in last
    assert "as fast" not in chat(Service())
    assert str(Race(1.0, 4.0, 60) + Race(1.0, 1.0, 9)).startswith("2.5 times as fast")
    assert str(Race(2.0, 2.0, 99)).startswith("About as fast")
    assert [str(Race(2.0, 0.0, 99)), str(Race(2.0, 4.0, 9))] == ["", ""]


def test_help_and_unknown_commands_are_not_asked() -> None:
    service = Service()

    assert chat(service, "/help", "/nothing", "", "  ").count("/proof") == 2
    assert service.asked == []


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (['say "hi"'], 'say "hi"'),
        (['"""one', "", ' two"""'], "one\n\n two"),
        (['"""', "one", '"""'], "one"),
        (['"""one"""'], "one"),
    ],
)
def test_several_lines_stand_between_quotation_marks(lines: list[str], message: str) -> None:
    assert read_message(typed(*lines)) == message


async def test_one_question_gets_the_answer_alone() -> None:
    service, out = Service(), io.StringIO()

    async with service() as client:
        await ask_once(client, question("Explain.", "x = 1\n"), out.write, system="S", seed=3)

    assert out.getvalue() == "oneone\n"
    assert roles(service.asked[0][1]["messages"]) == ["s:S", "u:Explain.\n\nx = 1\n"]
    assert service.asked[0][1]["seed"] == 3
    assert question("", " \n") == ""


# One line about a running answer, from what its stream tells.


def text(**counts: int) -> Chunk:
    return Chunk("x", Speculation(tokens=dict(counts)))


def event(name: str, **fields: object) -> Chunk:
    return Chunk("", Speculation(name, **fields))  # type: ignore[arg-type]


PASSES = [event("pass", rows=5, accepted=2), event("pass", rows=1, accepted=0)]
TOTALS = event("totals", drafted=8, accepted=6, rtt_ms=None)


@pytest.mark.parametrize(
    ("chunks", "line"),
    [
        ([text(target=1), text(draft=3, target=1), text(draft=6)], "5.0 tokens/s"),
        ([*PASSES, event("link", rtt_ms=12.4)], "50% of drafts accepted · RTT 12 ms"),
        ([*PASSES, TOTALS], "75% of drafts accepted"),
        ([Chunk("x")], ""),
    ],
    ids=["tokens after the first ones", "events", "totals count in the end", "nothing told"],
)
def test_a_line_has_the_speed_and_what_the_stream_tells(chunks: list[Chunk], line: str) -> None:
    progress = AnswerProgress(iter([10.0, 11.0, 12.0]).__next__)

    for chunk in chunks:
        progress.add(chunk)

    assert str(progress) == line


# An answer from its stream, and what a service answers instead.

TURNS = (Turn("user", "hi"),)
MODEL = ListedModel("m", "picospec")


async def test_an_answer_is_the_pieces_of_its_stream() -> None:
    screen = Screen()
    link = view_event("", event="link", rtt_ms=50.0)
    events = (view_event(""), view_event("Hello\nwor"), link, view_event("ld"), DONE)

    async with Service(*events)() as client:
        _, text = await answer(client, TURNS, screen, AnswerProgress(time.monotonic))

    assert text == "Hello\nworld"
    for part in ("Hello", "world", "RTT 50 ms"):
        assert part in screen.text


@pytest.mark.parametrize(
    ("service", "reason"),
    [
        (Service(view_event("half")), "ended before it was complete"),
        (Service('data: {"error": {"message": "no verifier"}}\n\n'), "no verifier"),
        (Service('{"error": {"message": "wrong key"}}', status=401), "wrong key"),
        (Service("<html>", status=502), "answered 502"),
        (Service('{"error": "no such model"}', status=404), "no such model"),
        (Service('data: {"error": "out of memory"}\n\n'), "out of memory"),
        (Service("data: <html>\n\n"), "no OpenAI-compatible service"),
        (Service('data: {"choices": [{"delta": 1}]}\n\n'), "OpenAI-compatible"),
    ],
)
async def test_an_answer_that_fails_says_why(service: Service, reason: str) -> None:
    async with service() as client:
        with pytest.raises(ChatError, match=reason):
            async for _ in stream_answer(client, MODEL, TURNS):
                pass


@pytest.mark.parametrize("body", ["<html>", '{"data": []}', '{"data": null}', "[]"])
async def test_a_service_without_a_list_of_models_is_a_clear_error(body: str) -> None:
    async with Service(models=body)() as client:
        with pytest.raises(ChatError, match="no OpenAI-compatible service"):
            await first_model(client)


async def test_what_other_services_leave_empty_is_no_error() -> None:
    models = '{"data": [{"id": "m", "owned_by": null}]}'
    events = ('data: {"choices": null}\n\n', view_event("hi"), DONE)

    async with Service(*events, models=models)() as client:
        _, text = await answer(client, TURNS, Screen(), AnswerProgress(time.monotonic))

    assert text == "hi"


async def test_reasoning_is_shown_above_the_answer_and_is_no_part_of_it() -> None:
    screen = terminal()
    delta = {"choices": [{"delta": {"reasoning_content": "Let me see."}}]}

    async with Service(f"data: {json.dumps(delta)}\n\n", view_event("Yes."), DONE)() as client:
        _, text = await answer(client, TURNS, screen, AnswerProgress(time.monotonic))

    assert text == "Yes."
    assert "\x1b[2mLet me see.\x1b[0m\n" in screen.text


@pytest.mark.parametrize("owner", ["picospec", ""])
async def test_only_a_service_that_tells_of_speculation_is_asked_to(owner: str) -> None:
    service = Service(DONE)

    async with service() as client:
        [_ async for _ in stream_answer(client, ListedModel("m", owner), TURNS)]

    expected = {"include_speculation": True} if owner else None
    assert bodies(service, "stream_options") == [[expected]]


def terminal() -> Screen:
    return Screen(force_terminal=True, color_system="standard", legacy_windows=False)


def drawn(screen: Screen, *chunks: Chunk) -> str:
    """Return what is written for these chunks, without what ends the view."""
    with Live(console=screen, auto_refresh=False) as live:
        view = AnswerView(live)
        for chunk in chunks:
            view.add(chunk, "fast")
        return screen.text


def chain(text: str, *, broken: bool = False) -> Chunk:
    return Chunk("", Speculation("chain", text=text, broken=broken))


def test_each_part_of_a_text_has_the_colour_of_its_origin() -> None:
    text = coloured("abcdef", [(2, "draft"), (1, "target"), (2, "lookup"), (1, "later")])

    assert [(span.start, span.end, span.style) for span in text.spans] == [
        (0, 2, "green"),
        (3, 5, "blue"),
    ]


def test_the_chain_runs_ahead_until_the_text_has_come_there() -> None:
    committed = Chunk(" cat", Speculation(spans=[(4, "draft")]))

    shown = drawn(terminal(), Chunk("The"), chain(" cat sat\non"), committed)

    before, _, after = shown.partition("\x1b[32m cat")
    assert "\x1b[2;3m cat sat" in before
    assert "\x1b[2;3m sat" in after
    assert "on" not in shown


@pytest.mark.parametrize("last", [chain("", broken=True), Chunk(" dog")])
def test_a_chain_that_was_wrong_is_gone(last: Chunk) -> None:
    screen = terminal()
    drawn(screen, Chunk("The"), chain(" cat"))
    screen.file = io.StringIO()

    assert " cat" not in drawn(screen, Chunk("The"), last)


async def test_where_no_terminal_is_there_are_no_colours_and_no_chain() -> None:
    screen = Screen()
    spans = view_event(
        "ab", spans=[[1, "draft"], [1, "target"]], tokens={"draft": 1, "target": 1}
    )
    ahead = view_event("", event="chain", text="zz", tokens=1)

    async with Service(spans, ahead, DONE)() as client:
        await answer(client, TURNS, screen, AnswerProgress(time.monotonic))

    assert screen.text.split() == ["ab"]


# What drafting gains is measured on an edge whose direct way takes twice as long.


class SlowDirect:
    """An edge that answers both ways; the time is that of its own clock."""

    def __init__(self, direct_text: str = "same") -> None:
        self.now_s = 0.0
        self.asked: list[str] = []
        self._direct_text = direct_text

    def __call__(self, request: httpx.Request) -> httpx.Response:
        path = request.url.path
        if path == "/v1/models":
            return httpx.Response(200, json={"data": [{"id": "m", "owned_by": "picospec"}]})
        self.asked.append(path)
        if path == ANSWER_CACHE:
            return httpx.Response(204)
        self.now_s += {CHAT: 1.0, DIRECT: 2.0}[path]
        text = "same" if path == CHAT else self._direct_text
        event = f'{{"choices": [{{"delta": {{"content": "{text}"}}}}]}}'
        return httpx.Response(200, text=f"data: {event}\n\ndata: [DONE]\n\n")


@pytest.mark.parametrize(("direct_text", "is_same"), [("same", True), ("other", False)])
async def test_the_ratio_is_that_of_both_ways_and_texts_are_compared(
    direct_text: str, is_same: bool
) -> None:
    edge = SlowDirect(direct_text)
    transport = httpx.MockTransport(edge)
    async with httpx.AsyncClient(transport=transport, base_url="http://edge") as client:
        gains = await measure(client, tokens=8, turns=2, clock=lambda: edge.now_s)

    assert [(each.kind, each.ratio, each.is_same_text) for each in gains] == [
        (kind, 2.0, is_same) for kind in PROMPTS
    ]
    first = [path for path in edge.asked if path != ANSWER_CACHE][:6]
    assert first == [CHAT, DIRECT, DIRECT, CHAT, CHAT, DIRECT]
