"""A web page of another origin cannot use a service that needs no key, and reads the answers of
another one if, and only if, a setting names it."""

from __future__ import annotations

import json
from collections.abc import Mapping

import httpx
import pytest

from tests.gateway.scripted import ScriptedEngine, client_of, make_app

JSON = {"content-type": "application/json; charset=utf-8"}
CHAT = b'{"messages": [{"role": "user", "content": "Hi"}]}'
EVIL = {"origin": "https://evil.example"}
OWN = {"origin": "http://gateway", "sec-fetch-site": "same-origin"}
FRIEND = {"origin": "https://chat.example", "sec-fetch-site": "cross-site"}
PREFLIGHT = FRIEND | {
    "access-control-request-method": "POST",
    "access-control-request-headers": "authorization,content-type",
}

HEADS = {
    "a program": (JSON, 200),
    "its own page": (JSON | OWN, 200),
    "its own page, over TLS that a proxy ends": (JSON | {"origin": "https://gateway"}, 200),
    "its own page, behind a proxy with another Host": (JSON | OWN | EVIL, 200),
    "a page that a setting names": (JSON | FRIEND, 200),
    "another page": (JSON | EVIL, 403),
    "another page, as browsers say": (JSON | EVIL | {"sec-fetch-site": "cross-site"}, 403),
    "another page, without its origin": (JSON | {"sec-fetch-site": "cross-site"}, 403),
    "a page of another port": (JSON | {"sec-fetch-site": "same-site"}, 403),
    "a page of another port, by its origin": (JSON | {"origin": "http://gateway:81"}, 403),
    "a page that hides its origin": (JSON | {"origin": "null"}, 403),
    "curl -d": ({"content-type": "application/x-www-form-urlencoded"}, 200),
    "a program that names no type": ({"content-type": ""}, 200),
    "a form": ({"content-type": "application/x-www-form-urlencoded"} | OWN, 415),
    "a form with files": ({"content-type": "multipart/form-data; boundary=a"} | OWN, 415),
    "a text": ({"content-type": "Text/Plain;charset=UTF-8"} | OWN, 415),
    "a body of no type": ({"content-type": ""} | OWN, 415),
    "a text, without its origin": (
        {"content-type": "text/plain", "sec-fetch-site": "same-origin"},
        415,
    ),
    "a form of another page": ({"content-type": "multipart/form-data"} | EVIL, 403),
    "JSON of another kind": ({"content-type": "application/problem+json"}, 200),
}


def bearing(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


async def posted(
    headers: Mapping[str, str],
    engine: ScriptedEngine | None = None,
    path: str = "/v1/chat/completions",
    **settings: object,
) -> httpx.Response:
    async with client_of(make_app(engine or ScriptedEngine(), **settings)) as client:
        return await client.post(path, content=CHAT, headers=headers)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/tokenize"])
@pytest.mark.parametrize("who", HEADS)
async def test_without_keys_only_own_pages_and_programs_are_served(who: str, path: str) -> None:
    engine = ScriptedEngine()
    headers, status = HEADS[who]

    answer = await posted(headers, engine, path, cors_origins=[FRIEND["origin"]])

    assert answer.status_code == status
    if status != 200:
        error = answer.json()["error"]
        code, advice = {
            403: ("origin_not_allowed", "cors_origins"),
            415: ("unsupported_media_type", "application/json"),
        }[status]
        assert error["code"] == code
        assert advice in error["message"]
        assert not engine.jobs


@pytest.mark.parametrize("who", HEADS)
async def test_with_keys_the_key_decides(who: str) -> None:
    answer = await posted(HEADS[who][0] | bearing("right"), api_keys=["right"])

    assert answer.status_code == 200


@pytest.mark.parametrize("who", ["a program", "a page of another port", "another page"])
async def test_where_a_setting_names_all_origins_every_page_is_served(who: str) -> None:
    answer = await posted(HEADS[who][0] | EVIL, cors_origins=["*"])

    assert answer.status_code == 200


async def test_a_link_on_another_page_leads_to_the_page_and_to_nothing_else() -> None:
    link = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}
    async with client_of(make_app(ScriptedEngine())) as client:
        answers = [await client.get(path, headers=link) for path in ("/", "/docs", "/status")]

    assert [answer.status_code for answer in answers] == [200, 200, 403]


@pytest.mark.parametrize(
    ("origins", "allowed"),
    [
        ([], None),
        (["https://other.example"], None),
        (["https://other.example", FRIEND["origin"]], FRIEND["origin"]),
        (["*"], "*"),
    ],
)
async def test_an_origin_reads_answers_by_setting(
    origins: list[str], allowed: str | None
) -> None:
    path, chat = "/v1/chat/completions", {**json.loads(CHAT), "user": "me"}
    app = make_app(ScriptedEngine(), cors_origins=origins, api_keys=["k"])
    async with client_of(app, FRIEND) as client:
        asked = await client.options(path, headers=PREFLIGHT)
        answers = [
            await client.post(path, json={**chat, "stream": stream}, headers=bearing(key))
            for stream in (False, True)
            for key in ("k", "wrong")
        ]

    assert asked.is_success is (allowed is not None)
    assert [answer.status_code for answer in answers] == [200, 401] * 2
    for answer in (asked, *answers):
        assert answer.headers.get("access-control-allow-origin") == allowed
    if allowed:
        exposed = answers[0].headers["access-control-expose-headers"].split(", ")
        assert {"x-request-id", "x-picospec-ignored"} <= set(exposed)
        assert answers[0].headers["x-picospec-ignored"] == "user"
