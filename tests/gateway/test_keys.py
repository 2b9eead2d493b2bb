"""With keys set, every path needs one, but for those that show nothing of any client."""

from __future__ import annotations

import pytest

from tests.gateway.scripted import ScriptedEngine, client_of, make_app

KEY = {"authorization": "Bearer right"}
PATHS = ["/v1/chat/completions", "/tokenize", "/v1/models", "/v1/nowhere"]


WRONG = [
    {},
    *({"authorization": key} for key in ("Bearer wrong", "Basic right", "right", "Bearer")),
    {"x-api-key": "wrong"},
    {"x-api-key": ""},
    {"x-api-key": "right", "authorization": "Bearer wrong"},
]


@pytest.mark.parametrize("headers", WRONG, ids=str)
@pytest.mark.parametrize("path", PATHS)
async def test_without_a_right_key_every_path_is_a_401(
    path: str, headers: dict[str, str]
) -> None:
    async with client_of(make_app(ScriptedEngine(), api_keys=["other", "right"])) as client:
        answer = await client.post(path, content=b"{", headers=headers)

    assert answer.status_code == 401
    assert answer.json()["error"]["code"] == "invalid_api_key"
    assert answer.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("key", [KEY, {"x-api-key": "right"}], ids=str)
async def test_with_a_right_key_every_path_is_open_and_some_always_are(
    key: dict[str, str],
) -> None:
    async with client_of(make_app(ScriptedEngine(), api_keys=["other", "right"])) as client:
        answers = [
            await client.get("/v1/models", headers=key),
            *[await client.get(path) for path in ("/health", "/ready", "/metrics")],
            *[await client.get(path) for path in ("/openapi.json", "/docs")],
        ]
        closed = await client.get("/version")

    assert [answer.status_code for answer in answers] == [200] * 6
    assert closed.status_code == 401
