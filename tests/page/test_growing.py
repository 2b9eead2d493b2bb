"""A text that grows: its letters come one after another, and none later than the next burst;
nothing in it takes long, and it looks as if it had come at once."""

from __future__ import annotations

from collections.abc import Callable
from itertools import groupby, pairwise

import pytest

from tests.page.visiting import Visit

PACED = """async (bursts) => {
  const {Pace} = await import("/page/chat/answer.js");
  const [pace, shown] = [new Pace(), []];
  let text = "", now = 0;
  for (const [ms, more] of bursts) {
    for (const until = now + ms; now < until; now += 10) shown.push([now, pace.due(text, now)]);
    text += more;
    shown.push([now, pace.due(text, now)]);
  }
  for (const until = now + 2000; now < until; now += 10) shown.push([now, pace.due(text, now)]);
  return shown;
}"""
"""Returns [ms, letters shown], every 10 ms. bursts: [ms since the last one, its text]."""


def paced(visit: Visit, *bursts: tuple[int, str]) -> dict[int, int]:
    """Return how many letters are shown at each time, in milliseconds."""
    return dict(visit.evaluate(PACED, bursts))


SPREAD = {
    "over the interval before it, once that is known": (
        [(400, "ab"), (400, "cdef"), (400, "gh")],
        {390: 0, 400: 2, 790: 2, 800: 3, 890: 3, 900: 4, 1000: 5, 1100: 6, 1190: 6, 1200: 7}
        | {1390: 7, 1400: 8},
    ),
    "until the next one comes early": (
        [(10, "a"), (400, "bcde"), (200, "fg")],
        {400: 1, 410: 2, 600: 3, 610: 6},
    ),
    "over a second at most": (
        [(10, "a"), (9000, "bcdef")],
        {9000: 1, 9010: 2, 9500: 4, 10010: 6},
    ),
}


@pytest.mark.parametrize(("bursts", "letters"), SPREAD.values(), ids=SPREAD)
def test_a_burst_is_spread(
    visit: Visit, bursts: list[tuple[int, str]], letters: dict[int, int]
) -> None:
    shown = paced(visit, *bursts)

    assert {ms: shown[ms] for ms in letters} == letters


def test_every_letter_comes_and_none_after_the_next_burst(visit: Visit) -> None:
    bursts = [(1 + 130 * (7 * n % 11), "x" * (1 + 5 * n % 9)) for n in range(40)]
    shown = paced(visit, *bursts)

    came, at_ms = 0, 0
    counts = list(shown.values())
    assert all(earlier <= later for earlier, later in pairwise(counts))
    for wait_ms, text in bursts:
        at_ms += -(-wait_ms // 10) * 10
        assert came < shown[at_ms] <= came + len(text)
        came += len(text)
    assert shown[at_ms + 1000] == counts[-1] == came


def test_a_letter_of_two_units_is_not_split(visit: Visit) -> None:
    shown = paced(visit, (10, "a"), (400, "🐈🐈🐈🐈"))

    assert set(shown.values()) == {0, 1, 3, 5, 7, 9}


WATCH = """() => {
  const watch = () => {
    window.held ||= document.querySelector(".answer.live .text .held")?.textContent;
    requestAnimationFrame(watch);
  };
  watch();
}"""
"""Notes the first text that was held, so that it can be shown letter by letter."""


@pytest.mark.parametrize(
    ("visit", "setting", "is_held"),
    [({}, "on", True), ({}, "off", False), ({"reduced_motion": "reduce"}, "on", False)],
    indirect=["visit"],
    ids=["steady", "not by setting", "without motion"],
)
def test_text_is_held_for_those_who_want_it_steady(
    visit: Visit, setting: str, is_held: bool
) -> None:
    visit.page.click("#open-settings")
    visit.page.get_by_label("Steady text").select_option(setting)
    visit.page.keyboard.press("Escape")
    visit.page.reload()
    visit.engine.pass_s = 0.3
    visit.evaluate(WATCH)

    answer = visit.ask("a long one", wait=False)
    answer.locator(".text", has_text="Line 2").wait_for()
    visit.page.keyboard.press("Escape")
    visit.until_done(answer)

    assert bool(visit.evaluate("window.held")) is is_held


# Ten thousand tokens in one conversation stay smooth, and a long block is cut.


LONGEST_MS = 100
TRIES = 3
SLOWNESS = """() => {
  const times = [];
  for (let run = 0; run < 12; run += 1) {
    const begun = performance.now();
    for (let n = 0, sum = 0; n < 4e6; n += 1) sum += Math.sqrt(n);
    times.push(performance.now() - begun);
  }
  return Math.max(...times) / Math.min(...times);
}"""
"""How many times as long the same work takes where the host is busy with something else."""
WATCH_TASKS = """() => {
  window.long = [];
  new PerformanceObserver((list) => {
    for (const task of list.getEntries()) window.long.push(task.duration);
  }).observe({type: "longtask"});
}"""


def longest_ms(visit: Visit, act: Callable[[], None]) -> float:
    """Return the longest task of `act`, in the try where that is shortest, and as it would be
    on a host that does nothing else."""
    longest = []
    for _ in range(TRIES):
        visit.page.reload()
        visit.evaluate(WATCH_TASKS)
        act()
        visit.page.wait_for_timeout(200)
        found = max(visit.evaluate("window.long"), default=0.0)
        longest.append(found / visit.evaluate(SLOWNESS))
        if longest[-1] < LONGEST_MS:
            break
    return min(longest)


@pytest.mark.long
@pytest.mark.parametrize("kind", ["mixed", "one line"])
def test_no_task_is_long_in_ten_thousand_tokens(visit: Visit, kind: str) -> None:
    visit.engine.pass_s = 0.001

    def ask() -> None:
        answer = visit.ask(f"ten thousand: {kind}", wait=False)
        answer.locator(".actions").wait_for(timeout=60_000)

    def read() -> None:
        visit.page.locator(".entry .open").first.click()
        visit.answers.first.locator(".actions").wait_for(timeout=60_000)

    assert longest_ms(visit, ask) < LONGEST_MS
    shown = visit.answers.first.locator(".figures div", has_text="tokens").nth(1)
    assert int(shown.locator("dd").inner_text()) >= 10_000
    assert longest_ms(visit, read) < LONGEST_MS


STEPS = "".join(
    f"{n}. **Step {n}** of many:\n\n"
    f"    ```python\n    x = {n}\n\n    y = {n}\n    ```\n\n    - this | that\n    - those\n\n"
    for n in range(1, 100)
)
BLOCKS = {
    "table": "| n | what |\n|---|:-:|\n"
    + "".join(f"| {n} | **word** {n * n} |\n" for n in range(600)),
    "steps": STEPS,
    "paragraph": "on - - - - - - - - - " * 400,
}
GROW = """async (text) => {
  const [{Growing}, {Runs}, {blocks, elements}] = await Promise.all(
    ["growing", "colouring", "markdown"].map((name) => import(`/page/chat/${name}.js`)));
  const [grown, whole] = [document.createElement("div"), document.createElement("div")];
  const growing = new Growing(grown, new Runs([["o-draft", 999], ["o-target", text.length]]));
  for (let n = 0; n < text.length; n += 211) growing.update(text.slice(0, n));
  growing.update(text);
  whole.append(elements(blocks(text)));
  const shown = (root) => [...root.querySelectorAll("div > p, li, pre, tr")].map(
    (each) => [each.tagName, each.textContent.replace(/\\s+/g, "")]);
  return {
    grown: shown(grown), whole: shown(whole),
    parts: grown.querySelectorAll("ol, tbody, p").length,
    tables: grown.querySelectorAll("table").length,
    astray: growing.marks.filter(([at, {data}]) => text.slice(at, at + data.length) !== data),
  };
}"""
"""Shows a text that grows, and the same text at once. Returns the elements of both, and marks
that are not where their text is."""


@pytest.mark.parametrize("kind", BLOCKS)
def test_a_long_block_that_grows_is_shown_as_at_once(visit: Visit, kind: str) -> None:
    shown = visit.evaluate(GROW, f"Look:\n\n{BLOCKS[kind]}\n\n# That is all.")

    def joined(each: list[tuple[str, str]]) -> list[tuple[str, str]]:
        tags = groupby(each, key=lambda part: part[0])
        return [(tag, "".join(text for _, text in parts)) for tag, parts in tags]

    assert joined(shown["grown"]) == joined(shown["whole"])
    assert shown["parts"] > 2  # it has been cut
    assert shown["tables"] == (kind == "table")
    assert shown["astray"] == []
