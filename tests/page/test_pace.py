"""The letters of a burst are shown one after another, and none later than the next burst."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

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


def test_a_burst_is_spread_over_the_interval_before_it(visit: Visit) -> None:
    shown = paced(visit, (400, "ab"), (400, "cdef"), (400, "gh"))

    assert [shown[ms] for ms in (390, 400)] == [0, 2]  # no interval is known yet
    assert [shown[ms] for ms in (790, 800, 890, 900, 1000, 1100)] == [2, 3, 3, 4, 5, 6]
    assert [shown[ms] for ms in (1190, 1200, 1390, 1400)] == [6, 7, 7, 8]


def test_a_burst_that_comes_early_shows_what_was_held(visit: Visit) -> None:
    shown = paced(visit, (10, "a"), (400, "bcde"), (200, "fg"))

    assert [shown[ms] for ms in (400, 410, 600, 610)] == [1, 2, 3, 6]


def test_after_an_outage_no_letter_is_held_for_longer_than_a_second(visit: Visit) -> None:
    shown = paced(visit, (10, "a"), (9000, "bcdef"))

    assert [shown[ms] for ms in (9000, 9010, 9500, 10010)] == [1, 2, 4, 6]


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
  window.lengths = [];
  const watch = () => {
    const text = document.querySelector(".answer.live .text");
    const ahead = text?.querySelector("[aria-hidden]:not(.cloud-cursor)");
    const mark = text?.querySelector(".cloud-cursor");
    window.held ||= text?.querySelector(".held")?.textContent;
    if (text) lengths.push([text, ahead, mark].map((each) => each?.textContent.length ?? 0)
      .reduce((whole, part) => whole - part));
    requestAnimationFrame(watch);
  };
  watch();
}"""
"""Notes how much of the answer's text is shown in each frame, without what runs ahead, and the
first text that was held."""


def steps(visit: Visit) -> list[int]:
    """Return by how many letters the text grew each time, for some passes of an answer."""
    visit.engine.pass_s = 0.3
    visit.evaluate(WATCH)
    answer = visit.ask("a long one", wait=False)
    answer.locator(".text", has_text="Line 2").wait_for()
    visit.page.keyboard.press("Escape")
    visit.until_done(answer)
    lengths: list[Any] = visit.evaluate("window.lengths")
    return [later - earlier for earlier, later in pairwise(lengths) if later > earlier]


def test_an_answer_grows_letter_by_letter_and_what_is_held_is_light(
    visit: Visit, is_long: bool
) -> None:
    grown = steps(visit)

    assert visit.evaluate("window.held")
    if is_long:  # a busy host draws few frames
        assert sorted(grown)[len(grown) // 2] <= 3
        assert len(grown) > 20


def test_text_that_is_not_to_be_steady_comes_in_bursts(visit: Visit) -> None:
    visit.page.click("#open-settings")
    visit.page.get_by_label("Steady text").select_option("off")
    visit.page.keyboard.press("Escape")
    visit.page.reload()

    assert steps(visit)
    assert not visit.evaluate("window.held")


@pytest.mark.parametrize("visit", [{"reduced_motion": "reduce"}], indirect=True)
def test_text_comes_in_bursts_for_those_who_want_no_motion(visit: Visit) -> None:
    assert steps(visit)
    assert not visit.evaluate("window.held")
