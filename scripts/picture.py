"""Makes the README's picture of the page: `python scripts/picture.py [URL]`.

It visits the page of an edge that runs, asks for a change of some code, and takes the picture
while the answer streams: once a part of it is there and draft tokens run ahead. Without a URL
it starts a pair itself, the target in vLLM in bfloat16 (PYTHON: that of its environment),
with a link of RTT_MS between the ends:

    python scripts/picture.py --target FOLDER --draft FILE --python PYTHON

It prints what the page says of the race, which belongs under the picture.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import sys
from pathlib import Path
from typing import Final

from playwright.sync_api import sync_playwright

from bench.link import Conditions
from bench.run.services import (
    EdgePlan,
    Services,
    ServicesPlan,
    verifier_arguments,
)

PICTURE: Final = Path(__file__).parents[1] / "docs" / "page.png"
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
    """Take the picture of a running edge, or of a pair."""
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
