"""What a test does on the page, and a scripted service in a thread of its own."""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import uvicorn
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import BrowserContext, ConsoleMessage, Locator, sync_playwright

from bench.link import Conditions
from bench.run.services import (
    EdgePlan,
    Services,
    ServicesPlan,
    free_port,
    verifier_arguments,
)
from tests.page.service import PageEngine, page_app

BUILD = Path(__file__).parents[2] / "build" / "page"
"""Where screenshots go, to be looked at."""


KEPT = """() => {
  const own = (key) => key.startsWith("picospec.conversation.");
  const name = Object.keys(localStorage).find(own);
  return JSON.parse(localStorage[name]).at(-1);
}"""
"""The turn that was kept last."""


def origins_kept(turn: dict[str, Any]) -> list[str]:
    """Return the origin of each character of a kept answer."""
    return [name.removeprefix("o-") for name, n in turn["race"]["runs"] for _ in range(n)]


class Serving:
    """The scripted service. It may be stopped in the middle of an answer, and started again."""

    def __init__(self, more: Mapping[str, str] | None = None, **settings: object) -> None:
        self.engine = PageEngine(more=dict(more or {}))
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._settings = settings

    def start(self) -> None:
        app = page_app(self.engine, **self._settings)
        self._server = uvicorn.Server(
            uvicorn.Config(
                app, port=self.port, log_level="critical", timeout_graceful_shutdown=0
            )
        )
        self._thread = threading.Thread(target=self._server.run)
        self._thread.start()
        while not self._server.started:
            self._thread.join(0.01)

    def cut(self) -> None:
        """Cut all connections, as a proxy at its limit does."""
        for each in list(self._server.server_state.connections):
            each.loop.call_soon_threadsafe(each.transport.abort)  # type: ignore[union-attr]

    def stop(self) -> None:
        self._server.should_exit = self._server.force_exit = True
        self._thread.join(10)


class Visit:
    """One person's visit to the page."""

    def __init__(self, context: BrowserContext, serving: Serving) -> None:
        self.context, self.serving = context, serving
        self.engine = serving.engine
        self.page = context.new_page()
        self.problems: list[str] = []
        self._requested: list[str] = []
        self.page.on("console", self._read_console)
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("dialog", lambda dialog: dialog.accept())
        context.on("request", lambda request: self._requested.append(request.url))

    def open(self) -> None:
        self.page.goto(self.serving.url)
        self.page.wait_for_selector("#health.good, #health.bad")

    def _read_console(self, message: ConsoleMessage) -> None:
        """Keep errors and violations of the policy, but not that a request failed."""
        failed = message.text.startswith("Failed to load resource")
        if message.type in ("error", "warning") and not failed:
            self.problems.append(message.text)

    def requested(self) -> list[str]:
        """Return all requests since the visit began, or was forgiven."""
        return list(self._requested)

    def elsewhere(self) -> list[str]:
        """Return the requests that left the service."""
        own = (f"{self.serving.url}/", "data:", "about:")
        return [url for url in self._requested if not url.startswith(own)]

    def serious(self) -> list[str]:
        """Return what axe-core finds serious or worse."""
        found = Axe().run(self.page).response["violations"]
        return [
            f"{each['id']}: {each['nodes'][0]['html'][:200]}"
            for each in found
            if each["impact"] in ("serious", "critical")
        ]

    def forgive(self) -> None:
        """Forget what went wrong, because the test wanted it."""
        self.problems.clear()
        self._requested.clear()

    def ask(self, text: str, *, wait: bool = True) -> Locator:
        """Ask as one does, and return the answer; it is complete if `wait`."""
        count = self.answers.count()
        self.page.fill("#question", text)
        self.page.press("#question", "Enter")
        answer = self.answers.nth(count)
        if wait:
            self.until_done(answer)
        return answer

    def sent(self, text: str) -> Any:  # noqa: ANN401 - as JSON is
        """Ask as one does, and return what the page sent for it."""
        with self.page.expect_request("**/v1/chat/completions") as request:
            self.ask(text)
        return request.value.post_data_json

    @property
    def questions(self) -> list[str]:
        return self.page.locator(".said").all_text_contents()

    def until_done(self, answer: Locator) -> None:
        answer.locator(".actions").wait_for()

    @property
    def answers(self) -> Locator:
        return self.page.locator("article.answer")

    def set(self, **settings: str) -> None:
        """Put values into the settings, by their labels."""
        self.page.click("#open-settings")
        for name, value in settings.items():
            label = name.replace("_", " ")
            self.page.locator("#settings").get_by_label(label, exact=False).first.fill(value)
        self.page.keyboard.press("Escape")

    def evaluate(self, script: str, *arguments: object) -> Any:  # noqa: ANN401 - as JSON is
        return self.page.evaluate(script, *arguments)

    def kept(self) -> dict[str, Any]:
        """Return the turn that the browser has kept last, of one conversation."""
        turn: dict[str, Any] = self.evaluate(KEPT)
        return turn

    def picture(self, name: str) -> None:
        BUILD.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=BUILD / f"{name}.png")


# Makes the README's picture of the page: `python -m tests.page.visiting [URL]`.
#
# It visits the page of an edge that runs, asks for a change of some code, and takes the picture
# while the answer streams: once a part of it is there and draft tokens run ahead. Without a URL
# it starts a pair itself, the target in vLLM in bfloat16 (PYTHON: that of its environment),
# with a link of RTT_MS between the ends:
#
#     python -m tests.page.visiting --target FOLDER --draft FILE --python PYTHON
#
# It prints what the page says of the race, which belongs under the picture.

PICTURE: Final = Path(__file__).parents[2] / "docs" / "page.png"
LARGEST_BYTES: Final = 200_000
RTT_MS: Final = 50
CODE: Final = """def merge(left, right):
    merged = []
    while left and right:
        side = left if left[0] <= right[0] else right
        merged.append(side.pop(0))
    return merged + left + right
"""
QUESTION: Final = f"Write this function again with type hints and a docstring:\n\n{CODE}"
SETTINGS: Final = {"temperature": "0", "seed": "1"}
ENOUGH_CHARACTERS: Final = 420


def take(url: str) -> str:
    """Take the picture; return what the page says of the race then."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        context = browser.new_context(
            viewport={"width": 1280, "height": 800}, color_scheme="light"
        )
        page = context.new_page()
        settings = json.dumps(SETTINGS)
        page.add_init_script(f"localStorage['picospec.settings'] = '{settings}'")
        page.goto(url)
        page.locator("#health.good").wait_for()
        page.fill("#question", QUESTION)
        page.keyboard.press("Enter")
        answer, ahead = page.locator("article.answer .text"), page.locator(".ahead")
        answer.wait_for()
        while len(answer.inner_text()) < ENOUGH_CHARACTERS or not ahead.inner_text().strip():
            page.wait_for_timeout(20)
            if "took" in page.locator("section.strip").inner_text():
                sys.exit("the answer ended before a picture was worth taking")
        page.screenshot(path=PICTURE)
        said = page.locator("section.strip").inner_text()
        browser.close()
    return said


async def of_a_pair(target: str, draft: str, python: str) -> str:
    """Start the services, and take the picture at their edge."""
    edges = {"far": EdgePlan(link=Conditions(rtt_ms=RTT_MS))}
    arguments = verifier_arguments("vllm", 1)
    plan = ServicesPlan(target, draft, edges, "vllm", arguments, python)
    async with Services(plan) as services:
        return await asyncio.to_thread(take, services.edge_urls["far"])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("url", nargs="?")
    for name in ("target", "draft", "python"):
        parser.add_argument(f"--{name}", default="")
    given = parser.parse_args()
    pair = given.target, given.draft, given.python
    said = take(given.url) if given.url else asyncio.run(of_a_pair(*pair))
    sys.stdout.write(f"{said}\n")
    if PICTURE.stat().st_size >= LARGEST_BYTES:
        sys.exit(f"{PICTURE} has more than {LARGEST_BYTES} bytes")


if __name__ == "__main__":
    main()
