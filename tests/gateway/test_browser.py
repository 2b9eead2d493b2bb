"""Pages of other origins may call the service if, and only if, a setting names them."""

from __future__ import annotations

import pytest

from tests.gateway.scripted import ScriptedEngine, client_of, make_app

CHAT = {"messages": [{"role": "user", "content": "Hi"}], "user": "me"}
ORIGIN = {"origin": "https://chat.example"}
ASKS = ORIGIN | {
    "access-control-request-method": "POST",
    "access-control-request-headers": "authorization,content-type",
}


@pytest.mark.parametrize(
    ("origins", "allowed"),
    [
        ([], None),
        (["https://other.example"], None),
        (["https://other.example", "https://chat.example"], "https://chat.example"),
        (["*"], "*"),
    ],
)
async def test_an_origin_is_allowed_by_setting(origins: list[str], allowed: str | None) -> None:
    app = make_app(ScriptedEngine(), cors_origins=origins, api_keys=["k"])
    async with client_of(app, ORIGIN) as client:
        asked = await client.options("/v1/chat/completions", headers=ASKS)
        answers = [
            await client.post(
                "/v1/chat/completions",
                json=CHAT | {"stream": stream},
                headers={"authorization": f"Bearer {key}"},
            )
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
