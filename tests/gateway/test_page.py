"""The page is small, comes from this service alone, and may do nothing but what it needs."""

from __future__ import annotations

import hashlib
import re
import tomllib
from pathlib import Path

import pytest

from tests.gateway.scripted import ScriptedEngine, client_of, make_app

PAGE = Path(__file__).parents[2] / "gateway" / "page"
VENDOR = PAGE / "vendor"
LIBRARIES = tomllib.loads((VENDOR / "vendor.toml").read_text())
SERVED = [
    path
    for path in sorted(PAGE.rglob("*"))
    if path.suffix in (".html", ".css", ".js", ".json", ".svg")
]
DIGESTS = {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in SERVED}


def address(path: Path) -> str:
    name = path.relative_to(PAGE).as_posix()
    return "/" if name == "index.html" else f"/page/{name}"


@pytest.mark.parametrize("path", SERVED, ids=address)
async def test_every_file_is_served_without_a_key_with_its_type_and_a_strict_policy(
    path: Path,
) -> None:
    async with client_of(make_app(ScriptedEngine(), api_keys=["k"])) as client:
        answer = await client.get(address(path), headers={"accept": "text/html, */*"})

    types = {
        ".html": "text/html",
        ".css": "text/css",
        ".js": "text/javascript",
        ".json": "application/json",
        ".svg": "image/svg+xml",
    }
    assert hashlib.sha256(answer.content).hexdigest() == DIGESTS[path]
    assert answer.headers["content-type"] == f"{types[path.suffix]}; charset=utf-8"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"
    policy = dict(
        part.strip().split(" ", 1)
        for part in answer.headers["content-security-policy"].split(";")
    )
    assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert "unsafe" not in answer.headers["content-security-policy"]


async def test_a_browser_that_has_a_file_gets_a_304_until_it_changes() -> None:
    async with client_of(make_app(ScriptedEngine())) as client:
        etag = (await client.get("/page/main.js")).headers["etag"]
        same = await client.get("/page/main.js", headers={"if-none-match": etag})
        other = await client.get("/page/main.js", headers={"if-none-match": '"other"'})

    assert (same.status_code, same.content, same.headers["etag"]) == (304, b"", etag)
    assert other.status_code == 200


@pytest.mark.parametrize(
    "path", ["/page/", "/page/nothing.js", "/page/vendor/vendor.toml", "/page/../app.py"]
)
async def test_nothing_else_is_served(path: str) -> None:
    async with client_of(make_app(ScriptedEngine())) as client:
        assert (await client.get(path)).status_code == 404


def test_no_file_names_another_host() -> None:
    ours = [path for path in SERVED if path.parent != VENDOR]
    found = {
        url for path in ours for url in re.findall(r"https?://[^\s\"'`)\\]+", path.read_text())
    }

    assert found == {"http://www.w3.org/2000/svg", "https://opencode.ai/config.json"}


def test_no_file_of_ours_parses_text_as_html_or_as_code() -> None:
    ours = [path for path in SERVED if path.parent != VENDOR]
    forbidden = re.compile(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function"
        r"|<script>|\sstyle=|\son\w+=\""
    )

    assert [path.name for path in ours if forbidden.search(path.read_text())] == []


def test_each_vendored_library_is_the_one_that_its_record_names() -> None:
    shipped = {path.name for path in VENDOR.glob("*.js")}

    assert shipped == LIBRARIES.keys()
    for name, record in LIBRARIES.items():
        assert hashlib.sha256((VENDOR / name).read_bytes()).hexdigest() == record["sha256"]
        assert (VENDOR / record["licence_file"]).stat().st_size > 1000
