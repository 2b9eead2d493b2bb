"""An edge says so while its verifier is away or of another version; and its settings."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send
from structlog.testing import capture_logs

from edge_agent.app import build
from edge_agent.link.verifier import FACTS_PATH
from edge_agent.settings import load
from gateway.access import HEALTH_PATHS
from gateway.drain import Drain
from gateway.hosting.settings import WrongSettings
from local_models.store import open_store
from picospec.chat_client import ANSWER_CACHE
from speculation.model_facts import PROTOCOL_VERSION
from tests.fakes.world import World
from tests.verifier.fake_target import FACTS, FakeTarget

CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4}


def client_of(cache: Path, drain: Drain) -> httpx.AsyncClient:
    """Return a client of an edge whose verifier is away."""
    settings = load(None, {}, {"draft_model": "none", "verifier_url": "http://127.0.0.1:9"})
    app = build(settings, open_store({"PICOSPEC_CACHE": str(cache)}), drain)
    transport = httpx.ASGITransport(app=app)
    return httpx.AsyncClient(transport=transport, base_url="http://localhost")


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    """A client of an edge whose verifier is away."""
    async with client_of(tmp_path, Drain()) as client:
        yield client


async def test_an_edge_without_a_verifier_is_alive_and_not_ready(
    client: httpx.AsyncClient,
) -> None:
    health, ready = await client.get("/health"), await client.get("/ready")
    same = [await client.get(path) for path in HEALTH_PATHS]

    assert (health.status_code, health.json()["state"]) == (200, "unavailable")
    assert {each.text for each in same} == {health.text}
    assert (ready.status_code, ready.json()["error"]["code"]) == (503, "verifier_unavailable")


async def test_a_stranger_sees_no_address_of_a_verifier(client: httpx.AsyncClient) -> None:
    shown = [(await client.get(path)).text for path in ("/health", "/ready", "/metrics")]
    status = (await client.get("/status")).json()

    address = status["verifiers"][0]["url"]
    assert address in status["error"]
    assert address.removeprefix("http://") not in "".join(shown)
    label = status["verifiers"][0]["verifier"]
    assert f'picospec:edge_verifier_ready{{verifier="{label}"}} 0.0' in shown[2]


async def test_a_cache_is_not_emptied_while_its_verifier_is_away(
    client: httpx.AsyncClient,
) -> None:
    answers = [await client.request(how, ANSWER_CACHE) for how in ("DELETE", "GET")]

    assert [answer.status_code for answer in answers] == [503, 405]


async def test_an_edge_that_drains_is_alive_and_not_ready(tmp_path: Path) -> None:
    drain = Drain()
    async with client_of(tmp_path, drain) as client:
        drain.begin(60.0)
        health, ready = await client.get("/health"), await client.get("/ready")

    assert (health.status_code, health.json()["state"]) == (200, "draining")
    assert (ready.status_code, ready.json()["error"]["code"]) == (503, "draining")
    assert ready.headers["retry-after"] == "1"


# --- a verifier that speaks another version of the protocol answers alone


def speaking(protocol: int, app: ASGIApp | None) -> ASGIApp:
    """Return the app of a verifier whose facts are of another version."""
    facts = {**msgspec.to_builtins(FACTS), "protocol": protocol, "judges": ["later"]}
    answer = JSONResponse(facts | {"limits": {"max_verify": "many"}})

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        assert app is not None
        await (answer if scope["path"] == FACTS_PATH else app)(scope, receive, send)

    return serve


@pytest.mark.parametrize("protocol", [5, 99])
@pytest.mark.parametrize(
    ("path", "body", "counts"),
    [
        ("/v1/chat/completions", CHAT, (2, 4)),
        ("/v1/completions", {"prompt": "Hi", "model": "fake", "max_tokens": 4}, (2, 4)),
        ("/api/chat", {**CHAT, "stream": False, "options": {"num_predict": 4}}, (2, 4)),
    ],
)
async def test_an_edge_passes_on_what_a_verifier_of_another_version_answers_and_says_so(
    tmp_path: Path, protocol: int, path: str, body: dict[str, Any], counts: tuple[int, int]
) -> None:
    async with World(target=FakeTarget) as world, world.edge(tmp_path) as edge:
        link = world.processes[0].link
        link.app = speaking(protocol, link.app)
        with capture_logs() as logs:
            answers = [await edge.client.post(path, json=body) for _ in range(2)]
            absent = await edge.client.post(path, json={**body, "model": "other"})
        (verifier,) = (await edge.client.get("/status")).json()["verifiers"]

    assert [answer.status_code for answer in answers] == [200, 200], answers[0].text
    assert answers[0].headers["x-picospec-fallback"] == "undrafted"
    (said,) = [line for line in logs if line["event"] == "undrafted"]
    assert (said["protocol"], said["own"]) == (protocol, PROTOCOL_VERSION)
    lines = [line for line in logs if line["event"] == "request" and "fallback" in line]
    assert [line["fallback"] for line in lines] == ["undrafted", "undrafted"]
    assert (lines[0]["prompt_tokens"], lines[0]["completion_tokens"]) == counts
    assert link.requests[f"POST {path}"] == 2
    assert (absent.status_code, "'other' does not exist" in absent.text) == (404, True)
    assert (verifier["protocol"], verifier["drafted"]) == (protocol, False)


# The edge's settings: where they come from, and which are errors.


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "edge.toml"
    path.write_text(text)
    return path


def test_the_command_line_wins_over_the_environment_and_that_over_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(
        tmp_path, 'port = 1\nslots = 2\nfill = "never"\n[proxy]\nbody_limit_bytes = 3000\n'
    )
    monkeypatch.setenv("PICOSPEC_EDGE__SLOTS", "3")
    monkeypatch.setenv("PICOSPEC_EDGE__PORT", "2")
    monkeypatch.setenv("PICOSPEC_EDGE__PROXY__MODELS", '["m"]')

    settings = load(path, {}, {"port": 4})

    assert (settings.port, settings.slots, settings.fill) == (4, 3, "never")
    assert settings.proxy.body_limit_bytes == 3000
    assert settings.proxy.models == ("m",)


SERVER = '[fallback_server]\nurl = "gpu:8000/v1"\nmodel = "m"\n'


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("ports = 1", "ports"),
        ("[proxy]\nmodel = []", r"proxy\.model"),
        ("port = 0", "port"),
        ('judge = "noise"', "judge"),
        ('verifier_url = "ftp://x"', "verifier_url"),
        ('verifier_urls = ["nonsense"]', r"\Aedge\.verifier_urls\.0: it should be a .*\Z"),
        ('verifier_urls = ["http://a", "ftp://x"]', "verifier_urls"),
        ('verifier_urls = ["http://a", "http://a"]', "verifier_urls"),
        ('verifier_url = "http://a"\nverifier_urls = ["http://b"]', "verifier_urls"),
        ('verifier_url = "http://a/?key=b"', "verifier_url"),
        ('verifier_urls = ["http://a/#b"]', "verifier_urls"),
        ('api_keys = "secret"', "keep api_keys out of files"),
        ('verifier_key = "secret"', "keep verifier_key out of files"),
        ('fallback = "draft"', "draft_model that is named"),
        ('fallback = "draft"\ndraft_model = "none"', "draft_model that is named"),
        ('fallback = "server"\ndraft_model = "smollm2"', r"needs fallback_server\.url"),
        ('fallback = "server,draft"\ndraft_model = "smollm2"', r"needs fallback_server\.url"),
        (f'fallback = "server"\n{SERVER}', "gpu in the clear"),
    ],
)
def test_a_setting_that_is_misspelt_or_out_of_range_is_named(
    tmp_path: Path, text: str, named: str
) -> None:
    with pytest.raises(WrongSettings, match=named):
        load(written(tmp_path, text), {"PICOSPEC_FALLBACK_KEY": "k"}, {})


def test_a_fallback_that_is_named_is_taken(tmp_path: Path) -> None:
    named = f'fallback = "server,draft"\ndraft_model = "smollm2"\n{SERVER}'

    settings = load(written(tmp_path, named), {}, {})

    assert settings.fallback == "server,draft"
    assert str(settings.fallback_server.url) == "http://gpu:8000/"


@pytest.mark.parametrize("url", ["http://user:s3cret@a", "http://s3cret@a", "http://:s3cret@a"])
@pytest.mark.parametrize("field", ["verifier_url", "verifier_urls"])
def test_a_secret_in_an_address_is_an_error_that_does_not_show_it(field: str, url: str) -> None:
    with pytest.raises(WrongSettings, match=f"{field}(.|\n)*PICOSPEC_VERIFIER_KEY") as raised:
        load(None, {}, {field: url if field == "verifier_url" else [url]})

    assert "s3cret" not in str(raised.value)


def test_keys_come_from_the_environment_and_are_not_shown() -> None:
    environ = {"PICOSPEC_API_KEYS": "key1, key2,", "PICOSPEC_VERIFIER_KEY": "three"}

    settings = load(None, environ, {})

    assert [key.get_secret_value() for key in settings.api_keys] == ["key1", "key2"]
    assert settings.shown_key == "three"
    assert "key1" not in repr(settings)
    assert load(None, {"PICOSPEC_API_KEYS": "one"}, {}).shown_key is None


@pytest.mark.parametrize(
    ("text", "named", "expected"),
    [
        ("", {}, ["http://127.0.0.1:9000/"]),
        ('verifier_url = "http://a"', {}, ["http://a/"]),
        ('verifier_urls = ["http://a", "https://b"]', {}, ["http://a/", "https://b/"]),
        (
            'verifier_url = "http://a"',
            {"verifier_url": None, "verifier_urls": ["http://c"]},
            ["http://c/"],
        ),
        ("", {"verifier_urls": ["gpu:9000"]}, ["http://gpu:9000/"]),
        ("", {"verifier_urls": ["http://gpu:9000/v1/"]}, ["http://gpu:9000/"]),
    ],
)
def test_verifiers_are_one_or_several_and_their_addresses_are_read_as_people_type_them(
    tmp_path: Path, text: str, named: dict[str, object], expected: list[str]
) -> None:
    settings = load(written(tmp_path, text), {}, named)

    assert [str(url) for url in settings.verifiers] == expected
