"""What a test does on the page, and a scripted service in a thread of its own."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import uvicorn
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import BrowserContext, ConsoleMessage, Locator

from bench.run.services import (
    free_port,
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
