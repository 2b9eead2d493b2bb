"""A browser, and a scripted service that it visits. No request may leave that service."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from playwright.sync_api import Browser, sync_playwright

from tests.page.visiting import Serving, Visit

SIZES = {"wide": {"width": 1280, "height": 860}, "narrow": {"width": 360, "height": 740}}


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        pytest.skip("there is no Chromium: the page is not tested (apt-get install chromium)")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def serving() -> Iterator[Serving]:
    service = Serving()
    service.start()
    yield service
    service.stop()


@contextmanager
def visiting(
    browser: Browser, service: Serving, script: str = "", **options: object
) -> Iterator[Visit]:
    """Open a service's page in a profile of its own, and see that nothing goes wrong there.

    script: runs before the page's own. options: more of Playwright's for the profile.
    """
    context = browser.new_context(**{"viewport": SIZES["wide"], **options})
    context.set_default_timeout(60_000)
    context.add_init_script(script)
    visit = Visit(context, service)
    visit.open()
    yield visit
    context.close()
    assert visit.problems == []
    assert visit.elsewhere() == []


@pytest.fixture
def visit(
    chromium: Browser, serving: Serving, request: pytest.FixtureRequest
) -> Iterator[Visit]:
    """Open the page in a profile of its own; `@pytest.mark.parametrize("visit", ..., indirect)`
    gives more options of Playwright's contexts."""
    serving.engine.restore()
    with visiting(chromium, serving, **getattr(request, "param", {})) as visit:
        yield visit
