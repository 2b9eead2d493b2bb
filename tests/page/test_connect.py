"""The panel of other clients says what `picospec connect` says, and copies it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from picospec.connect import NO_KEY, find_edge
from picospec.known_clients import Edge, read_clients
from tests.page.visiting import Visit


def test_each_client_can_be_copied_as_the_command_prints_it(visit: Visit) -> None:
    visit.context.grant_permissions(["clipboard-read", "clipboard-write"])
    with ThreadPoolExecutor() as other:  # this thread has the browser's loop
        edge = other.submit(find_edge, visit.serving.url, None).result()
    parts = [part for client in read_clients().values() for part in client.parts]

    visit.page.click("#open-connect")
    panel = visit.page.locator("#connect")
    panel.locator("summary", has_text="Codex").click()
    serious = visit.serious()
    assert "null" not in panel.inner_text()  # nothing is said of other models
    panel.locator(".part .action").first.click()

    assert edge.key == NO_KEY
    assert panel.locator(".part pre").all_text_contents() == [edge.fill(part) for part in parts]
    assert visit.evaluate("navigator.clipboard.readText()") == edge.fill(parts[0])
    assert serious == []


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
