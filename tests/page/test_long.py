"""Ten thousand tokens in one conversation stay smooth."""

from __future__ import annotations

import pytest

from tests.page.visiting import Visit

LONGEST_MS = 100
WATCH = """() => {
  window.long = [];
  new PerformanceObserver((list) => {
    for (const task of list.getEntries()) window.long.push(task.duration);
  }).observe({type: "longtask"});
}"""


@pytest.mark.parametrize("kind", ["paragraphs", "code", "one line"])
def test_no_task_is_long_in_ten_thousand_tokens(visit: Visit, kind: str) -> None:
    visit.engine.pass_s = 0.001
    visit.evaluate(WATCH)

    answer = visit.ask(f"ten thousand: {kind}", wait=False)
    answer.locator(".actions").wait_for(timeout=60_000)

    tokens = answer.locator(".figures div", has_text="tokens").nth(1).locator("dd").inner_text()
    assert int(tokens) >= 10_000
    assert max(visit.evaluate("window.long"), default=0) < LONGEST_MS
    visit.page.reload()
    visit.evaluate(WATCH)
    visit.page.locator(".entry .open").first.click()
    visit.answers.first.locator(".actions").wait_for(timeout=60_000)
    assert max(visit.evaluate("window.long"), default=0) < LONGEST_MS
