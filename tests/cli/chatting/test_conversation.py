"""A conversation, its commands and its last sentence; one question; and how lines are read."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import httpx
import pytest

from picospec.cli.chat import Conversation, ask_once, question, read_message
from picospec.cli.chat_client import Race
from tests.cli.screen import Screen

DIRECT = "/v1/picospec/direct/chat/completions"


class Service:
    """It says "one", then "two" and so on; alone, what `alone` says."""

    def __init__(self, alone: str = "one") -> None:
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self._alone = alone

    def __call__(self) -> httpx.AsyncClient:
        transport = httpx.MockTransport(self._respond)
        return httpx.AsyncClient(transport=transport, base_url="http://edge")

    def _respond(self, request: httpx.Request) -> httpx.Response:
        path = request.url.path
        if path == "/v1/models":
            return httpx.Response(200, json={"data": [{"id": "m", "owned_by": "picospec"}]})
        self.asked.append((path, json.loads(request.content)))
        words = ("one", "two", "three")[sum(path != DIRECT for path, _ in self.asked) - 1]
        delta = {"delta": {"content": self._alone if path == DIRECT else words}}
        chunk = {"choices": [delta], "speculation": {"tokens": {"draft": 50}}}
        totals = {"choices": [], "speculation": {"event": "totals", "cloud_row_ms": 1e6}}
        lines = [json.dumps(each) for each in (chunk, chunk, totals)]
        return httpx.Response(200, text="".join(f"data: {x}\n\n" for x in [*lines, "[DONE]"]))


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
    service = Service(alone)

    shown = chat(service, "/proof", "/system S", "a", "/system T", "/proof")

    (path, asked), (direct, again) = service.asked
    assert "no answer to prove yet" in shown
    assert verdict in shown
    assert (path, direct) == ("/v1/chat/completions", DIRECT)
    assert asked["seed"] == again["seed"]
    assert roles(asked["messages"]) == roles(again["messages"]) == ["s:S", "u:a"]
    assert "stream_options" not in again


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
