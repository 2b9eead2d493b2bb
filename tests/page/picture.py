"""Makes the README's picture of the page: `python -m tests.page.picture [URL]`.

It visits the page of an edge that runs (make run), asks a question, and takes the picture while
the answer streams: once some of it is there and draft tokens run ahead.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

PICTURE = Path(__file__).parents[2] / "docs" / "page.png"
LARGEST_BYTES = 200_000
QUESTION = "Write a Python function that merges two sorted lists, with a test."
SETTINGS = '{"temperature": "0.3", "seed": "1"}'
ENOUGH_CHARACTERS = 260


def take(url: str) -> None:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        context = browser.new_context(
            viewport={"width": 1120, "height": 760}, color_scheme="light"
        )
        page = context.new_page()
        page.add_init_script(f"localStorage['picospec.settings'] = '{SETTINGS}'")
        page.goto(url)
        page.locator("#health.good").wait_for()
        page.fill("#question", QUESTION)
        page.keyboard.press("Enter")
        answer, ahead = page.locator("article.answer .text"), page.locator(".ahead")
        answer.wait_for()
        while len(answer.inner_text()) < ENOUGH_CHARACTERS or not ahead.inner_text().strip():
            page.wait_for_timeout(20)
        page.screenshot(path=PICTURE)
        browser.close()


if __name__ == "__main__":
    take(sys.argv[1] if sys.argv[1:] else "http://127.0.0.1:8000/")
    if PICTURE.stat().st_size >= LARGEST_BYTES:
        sys.exit(f"{PICTURE} has more than {LARGEST_BYTES} bytes")
