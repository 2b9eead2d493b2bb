"""Where an edge serves several models, a conversation chooses one and remembers it. The panel
of other clients says of them what `picospec connect` says."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from picospec.connect import NO_KEY, find_edge
from picospec.known_clients import Edge, read_clients
from tests.page.conftest import SIZES
from tests.page.visiting import Serving, Visit

PHONE = {"viewport": SIZES["narrow"], "has_touch": True, "color_scheme": "dark"}


@pytest.fixture(scope="module")
def serving() -> Iterator[Serving]:
    service = Serving({"words-2": "ready", "words-3": "away"})
    service.start()
    yield service
    service.stop()


def chosen(visit: Visit) -> str:
    return visit.page.locator("#models select").input_value()


def choose(visit: Visit, model: str) -> None:
    visit.page.locator("#models select").select_option(model)


def test_each_conversation_remembers_its_model(visit: Visit) -> None:
    first = (chosen(visit), visit.sent("think of one")["model"])
    visit.page.click("#begin")
    choose(visit, "words-2")
    second = (visit.sent("think of two")["model"], visit.sent("think again")["model"])
    visit.page.click("#begin")
    third = chosen(visit)
    visit.page.get_by_role("button", name="Rename think of one").click()
    visit.page.get_by_label("Name of the conversation").fill("one")
    visit.page.keyboard.press("Enter")
    visit.page.reload()
    found: dict[str, str] = {}
    for title in ("one", "think of two"):
        visit.page.get_by_role("button", name=title, exact=True).click()
        found[title] = chosen(visit)

    choose(visit, "words-1")
    heads = visit.answers.locator("h2").all_inner_texts()
    for title in ("one", "think of two"):
        visit.page.get_by_role("button", name=title, exact=True).click()

    assert chosen(visit) == "words-1"
    assert (first, second, third) == (("words-1", "words-1"), ("words-2", "words-2"), "words-2")
    assert found == {"one": "words-1", "think of two": "words-2"}
    assert heads == ["PicoSpec · words-2", "PicoSpec · words-2"]


def test_the_race_and_its_proof_are_of_the_chosen_model(visit: Visit) -> None:
    choose(visit, "words-2")
    answer = visit.ask("Merge two lists")
    choose(visit, "words-1")
    with visit.page.expect_request("**/direct/chat/completions") as request:
        answer.get_by_role("button", name="Prove it").click()
    answer.locator(".proof.same").wait_for()

    assert request.value.post_data_json["model"] == "words-2"
    assert answer.locator(".text .o-draft").count()
    assert "as fast as the cloud alone" in answer.locator(".figures").inner_text()


def test_a_model_that_is_away_cannot_be_chosen_and_one_that_goes_away_says_so(
    visit: Visit,
) -> None:
    option = visit.page.locator("#models option", has_text="words-3 (away)")
    assert option.is_disabled()
    choose(visit, "words-2")
    visit.ask("think")
    visit.engine.more["words-2"] = "away"
    visit.page.reload()
    fresh = chosen(visit)
    visit.page.get_by_role("button", name="think", exact=True).click()
    visit.page.locator("#away", has_text="words-2 is away").wait_for()
    away = (chosen(visit), visit.page.locator("#health").get_attribute("class"))
    visit.engine.more["words-2"] = "ready"
    visit.page.click("#open-status")
    visit.page.locator("#health.good").wait_for()

    assert (fresh, away) == ("words-1", ("words-2", "dot bad"))
    assert visit.page.locator("#away").inner_text() == ""


@pytest.mark.parametrize("visit", [{}, PHONE], indirect=True, ids=["wide", "phone"])
def test_the_status_says_in_words_what_drafts_and_where_answers_began(visit: Visit) -> None:
    choose(visit, "words-2")
    found = {"picker": visit.serious()}
    header = visit.page.locator("#models").inner_text().split("\n")[-1]
    room = visit.evaluate("document.documentElement.scrollWidth - innerWidth")
    visit.page.click("#open-status")
    visit.page.get_by_text("Where the last answers began").wait_for()
    words = " ".join(visit.page.locator("#status").inner_text().split())
    found["status"] = visit.serious()

    assert header == "judges · small-2 drafts"
    assert room <= 0
    for said in (
        "words-1 ready; 4000000 tokens of context; drafts by small-1, in memory, 415 MB; at",
        "drafts by small-2, asleep until it is asked for; at 127.0.0.1:9001 words-3 away:",
        "4 s ago words-2 at 127.0.0.1:9001, because it has read the beginning of the prompt",
        "95 s ago words-1 at 127.0.0.1:9000, because it answers soonest 12 min ago words-2",
    ):
        assert said in words
    assert found == {"picker": [], "status": []}


def test_each_client_can_be_copied_with_every_model_as_the_command_prints_it(
    visit: Visit,
) -> None:
    visit.context.grant_permissions(["clipboard-read", "clipboard-write"])
    choose(visit, "words-2")
    with ThreadPoolExecutor() as other:  # this thread has the browser's loop
        edge = other.submit(find_edge, visit.serving.url, None, "words-2").result()
    parts = [edge.fill(part) for client in read_clients().values() for part in client.parts]

    visit.page.click("#open-connect")
    panel = visit.page.locator("#connect")
    panel.locator("summary", has_text="Codex").click()
    serious = visit.serious()
    panel.locator(".part .action").first.click()

    assert panel.locator(".part pre").all_text_contents() == parts
    assert visit.evaluate("navigator.clipboard.readText()") == parts[0]
    assert (edge.key, [each.model for each in edge.others]) == (NO_KEY, ["words-1"])
    assert serious == []


def test_a_key_that_opens_one_model_has_no_choice(visit: Visit) -> None:
    opened = '{"data": [{"id": "words-2"}]}'
    visit.page.route("**/v1/models", lambda route: route.fulfill(body=opened))
    visit.page.reload()
    visit.page.locator("#models", has_text="small-2 drafts · words-2 judges").wait_for()

    assert visit.page.locator("select").count() == 0
    assert "model" not in visit.sent("think")


def test_a_key_is_copied_and_not_shown_whatever_it_is(visit: Visit) -> None:
    key, name = 'it\'s "$a" \\ key', 'a "m"'
    edge = Edge("http://e", name, 4097, key)
    values = {**dict(url=edge.url, model=name, key=key), "context": 4097}
    values |= {"output": 1024, "input": 3073}
    visit.set(API_key="very-secret")

    visit.page.click("#open-connect")
    visit.page.locator("#connect .part pre").first.wait_for(state="attached")
    shown = visit.page.locator("#connect").text_content()

    assert "very-secret" not in (shown or "")
    for client in read_clients().values():
        for part in client.parts:
            given = [{"format": part.format, "text": part.text}, [values]]
            script = "async (a) => (await import('/page/panels/connect.js')).fill(...a)"
            assert visit.evaluate(script, given) == edge.fill(part)
