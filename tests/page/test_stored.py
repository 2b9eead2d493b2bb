"""Answers that the browser has kept are shown, copied, coloured and found as they came."""

from __future__ import annotations

import json
import re
from itertools import cycle
from typing import Any, Final

import pytest
from playwright.sync_api import Locator

from tests.page.service import TEXTS
from tests.page.visiting import Visit

STORED: Final = {
    "several": (TEXTS / "several.md").read_text(),
    "nested": (TEXTS / "nested.md").read_text(),
    "unclosed": "```\nuniform\n```\n\n```\n```\n\nvictor\n\n```c\nwhiskey;\n\nxray;\n",
}
CODE: Final = {
    "several": ["alpha = 1\n", "bravo;\n", "charlie\n\n  delta\n", "foxtrot\n", "kilo\n"],
    "nested": ["mike = 1\n", "```\noscar\n```\n", "quebec\n  romeo\n", "sierra\n"],
    "unclosed": ["uniform\n", "", "whiskey;\n\nxray;\n"],
}
LANGUAGE: Final = re.compile(r"(?m)^ *(?:`{3,}|~{3,}) *\w+")
ORIGINS: Final = ("draft", "lookup", "target")
WORDS: Final = """(all) => all.flatMap(({textContent, className}) =>
  (textContent.match(/[A-Za-z]+/g) ?? []).map((word) => [word, className]))"""
RACE: Final = {
    "tokens": 90, "counts": {"draft": 90}, "speculates": True, "cloud_tokens": 90,
    "alone_s": 1.0, "elapsed_s": 2.0, "rtt_ms": None,
    "passes": [[0.5 * n, 8, 4, 0.1] for n in range(1, 4)],
}  # fmt: skip


def keep(visit: Visit, **answers: str) -> None:
    """Put conversations, each of a title and an answer, into the browser's storage, and load
    the page again. Each word of an answer has another origin than the one before."""
    kept: dict[str, Any] = {"s": [{"id": each, "title": each} for each in answers]}
    for title, content in answers.items():
        words = re.findall(r"\W*\w+|\W+$", content)
        runs = [[f"o-{each}", len(word)] for each, word in zip(cycle(ORIGINS), words)]
        turn = {"role": "assistant", "content": content, "state": "done"}
        turns = [{"role": "user", "content": "Show it"}, turn | {"race": RACE | {"runs": runs}}]
        kept[f".{title}"] = turns
    for name, value in kept.items():
        pair = [f"picospec.conversation{name}", json.dumps(value)]
        visit.evaluate("(pair) => localStorage.setItem(...pair)", pair)
    visit.page.reload()


def opened(visit: Visit, title: str) -> Locator:
    visit.page.get_by_role("button", name=title, exact=True).click()
    visit.until_done(visit.answers.last)
    return visit.answers.last


@pytest.mark.parametrize("kind", STORED)
def test_code_is_whole_in_sight_in_colour_and_when_copied(visit: Visit, kind: str) -> None:
    visit.context.grant_permissions(["clipboard-read", "clipboard-write"])
    keep(visit, **{kind: STORED[kind]})

    answer, copied = opened(visit, kind), []
    for button in answer.locator(".code button").all():
        button.click()
        button.filter(has_text="Copied").wait_for()
        copied.append(visit.evaluate("navigator.clipboard.readText()"))

    assert answer.locator(".code pre").all_text_contents() == copied == CODE[kind]
    origins = dict(zip(re.findall(r"\w+", STORED[kind]), cycle(ORIGINS)))
    words = re.findall("[A-Za-z]+", LANGUAGE.sub("", STORED[kind]))
    coloured = answer.locator(".text .t").evaluate_all(WORDS)
    assert coloured == [[word, f"t o-{origins[word]}"] for word in words]


PAINTED: Final = """() => Object.fromEntries([...CSS.highlights].map(([name, ranges]) => {
  const texts = [...ranges].map((each) => {
    const range = document.createRange();
    range.setStart(each.startContainer, each.startOffset);
    range.setEnd(each.endContainer, each.endOffset);
    return range.toString();
  });
  return [name, texts.sort().join(" ")];
}))"""
PARTS: Final = {"keyword": "class def return", "name": "Tree grow", "literal": "2",
                "string": "'' 'of'", "comment": "# doubled"}  # fmt: skip
UNTIL: Final = """async () => {{
  while (!(CSS.highlights.{})) await new Promise(requestAnimationFrame);
}}"""
LINE: Final = """(t) => {
  const {textDecorationLine, borderBottomStyle} = getComputedStyle(t);
  return [textDecorationLine, borderBottomStyle];
}"""


def test_code_in_sight_is_painted_by_its_syntax_without_an_element(visit: Visit) -> None:
    code = "class Tree:\n  def grow(self):  # doubled\n    return 2 * 'of' + ''\n"
    keep(visit, code=f"```python\n{code}```\n\n```nonsense\nclass\n```\n", none="None.")

    text = opened(visit, "code").locator("pre").first
    visit.evaluate(UNTIL.format("size == 5"))
    painted, shown = visit.evaluate(PAINTED), text.text_content()
    line = text.locator(".o-lookup").first.evaluate(LINE)
    elements = text.locator("code *").evaluate_all("(all) => all.map((e) => e.className)")
    opened(visit, "none")
    visit.evaluate(UNTIL.format("entries().every(([, {size}]) => !size)"))

    assert painted == PARTS
    assert shown == code
    assert line == ["none", "dashed"]  # a decoration would have the colour of the letters
    assert set(elements) - {""} == {*(f"t o-{each}" for each in ORIGINS)}


def test_a_race_that_was_lost_is_shown_as_lost(visit: Visit) -> None:
    keep(visit, lost="It was slower.")

    lanes = opened(visit, "lost").locator(".lane i")

    shares = lanes.evaluate_all("(all) => all.map((bar) => bar.style.transform)")
    assert shares == ["scaleX(0.5)", "scaleX(1)"]


def test_conversations_are_found_by_their_titles_and_texts(visit: Visit) -> None:
    keep(visit, Trees="A maple is tall.", Birds="A swift is not a Maple tree.", Fish="A cod.")
    entries, field = visit.page.locator(".entry .open"), visit.page.locator("#search")

    found = {}
    for query in ("maple", "MAPLE tree", "birds maple", "cod swift", ""):
        field.fill(query)
        found[query] = entries.all_text_contents()
        if query == "cod swift":
            visit.page.get_by_text("Nothing is found.").wait_for()

    assert found == {
        "maple": ["Trees", "Birds"],
        "MAPLE tree": ["Trees", "Birds"],
        "birds maple": ["Birds"],
        "cod swift": [],
        "": ["Trees", "Birds", "Fish"],
    }


COLOURS: Final = """(canvas) => {
  const {width, height} = canvas;
  const copy = new OffscreenCanvas(width, height).getContext("2d", {willReadFrequently: true});
  copy.drawImage(canvas, 0, 0);
  const {data} = copy.getImageData(0, 0, width, height);
  const found = new Set();
  for (let at = 0; at < data.length; at += 4) {
    if (data[at + 3] === 255) found.add(`rgb(${data.slice(at, at + 3).join(", ")})`);
  }
  return [...found];
}"""


@pytest.mark.parametrize("by", ["button", "system"])
def test_the_passes_have_the_colours_of_the_theme_at_once(visit: Visit, by: str) -> None:
    keep(visit, passes="Some.")
    canvas = opened(visit, "passes").locator("canvas")
    bar = "(canvas) => getComputedStyle(canvas).borderTopColor"
    light, before = canvas.evaluate(bar), canvas.evaluate(COLOURS)

    if by == "system":
        visit.page.emulate_media(color_scheme="dark")
    else:
        visit.page.click("#theme")
        visit.page.click("#theme")

    dark, after = canvas.evaluate(bar), canvas.evaluate(COLOURS)
    assert light in before
    assert dark in after
    assert light not in after
