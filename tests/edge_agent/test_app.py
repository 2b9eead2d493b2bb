"""An edge says so while its verifier is away or speaks another version, or while it drains."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from structlog.testing import capture_logs

from bench.run.services import free_port
from edge_agent.app import build
from edge_agent.settings import load
from gateway.access import HEALTH_PATHS
from gateway.drain import Drain
from gateway.hosting.settings import WrongSettings
from local_models.store import open_store
from picospec.chat_client import ANSWER_CACHE
from tests.edge_agent import fake_verifier
from tests.edge_agent.processes import start

CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4}


def client_of(cache: Path, drain: Drain, verifier: str = "") -> httpx.AsyncClient:
    """Return a client of an edge whose verifier is at that address, or away."""
    url = verifier or f"http://127.0.0.1:{free_port()}"
    settings = load(None, {}, {"draft_model": "none", "verifier_url": url})
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


@pytest.mark.system
async def test_an_edge_that_drains_is_alive_and_not_ready(tmp_path: Path) -> None:
    drain = Drain()
    async with client_of(tmp_path, drain) as client:
        drain.begin(60.0)
        health, ready = await client.get("/health"), await client.get("/ready")

    assert (health.status_code, health.json()["state"]) == (200, "draining")
    assert (ready.status_code, ready.json()["error"]["code"]) == (503, "draining")
    assert ready.headers["retry-after"] == "1"


# --- a verifier that speaks another version of the protocol answers alone


@pytest.fixture(params=["old", "new"])
async def undrafted(
    request: pytest.FixtureRequest, tmp_path: Path
) -> AsyncIterator[httpx.AsyncClient]:
    process = start(request.param)
    async with client_of(tmp_path, Drain(), process.url) as client:
        yield client
    process.kill()


@pytest.mark.system
@pytest.mark.parametrize(
    ("path", "body"),
    [("/v1/chat/completions", CHAT), ("/v1/completions", {"prompt": "Hi", "model": "plain"})],
)
async def test_an_edge_passes_on_what_a_verifier_of_another_version_answers_and_says_so(
    undrafted: httpx.AsyncClient, path: str, body: dict[str, object]
) -> None:
    with capture_logs() as logs:
        answer = await undrafted.post(path, json=body)
        again = await undrafted.post(path, json=body)

    assert answer.status_code == again.status_code == 200
    assert answer.json() == {"path": path, "asked": {**body, "model": "plain"}}
    assert answer.headers["x-picospec-fallback"] == "undrafted"
    (said,) = [line for line in logs if line["event"] == "undrafted"]
    assert said["protocol"] in (5, 99)
    assert said["own"] == fake_verifier.PROTOCOL_VERSION
    requests = [line["fallback"] for line in logs if line["event"] == "request"]
    assert requests == ["undrafted", "undrafted"]
    (verifier,) = (await undrafted.get("/status")).json()["verifiers"]
    assert (verifier["protocol"], verifier["drafted"]) == (said["protocol"], False)


@pytest.mark.system
async def test_what_an_answer_for_a_client_of_ollama_took_is_counted(
    undrafted: httpx.AsyncClient,
) -> None:
    counts = {"prompt_eval_count": 7, "eval_count": 3}

    with capture_logs() as logs:
        asked = {"messages": CHAT["messages"], "counts": counts}  # and it is answered so
        answer = await undrafted.post("/api/chat", json=asked)

    (line,) = [line for line in logs if line["event"] == "request"]
    assert answer.json()["path"] == "/api/chat"
    assert (line["prompt_tokens"], line["completion_tokens"]) == (7, 3)


@pytest.mark.system
async def test_a_model_that_an_old_verifier_lacks_is_still_not_found(
    undrafted: httpx.AsyncClient,
) -> None:
    answer = await undrafted.post("/v1/chat/completions", json={**CHAT, "model": "other"})

    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "model_not_found"


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


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("ports = 1", "ports"),
        ("[proxy]\nmodel = []", "proxy.model"),
        ("port = 0", "port"),
        ('judge = "noise"', "judge"),
        ('verifier_url = "ftp://x"', "verifier_url"),
        ('verifier_urls = ["http://a", "ftp://x"]', "verifier_urls"),
        ('verifier_urls = ["http://a", "http://a"]', "verifier_urls"),
        ('verifier_url = "http://a"\nverifier_urls = ["http://b"]', "verifier_urls"),
        ('verifier_url = "http://a/?key=b"', "verifier_url"),
        ('verifier_urls = ["http://a/#b"]', "verifier_urls"),
    ],
)
def test_a_setting_that_is_misspelt_or_out_of_range_is_named(
    tmp_path: Path, text: str, named: str
) -> None:
    with pytest.raises(WrongSettings, match=named):
        load(written(tmp_path, text), {}, {})


@pytest.mark.parametrize("text", ["gpu:9000", "http://gpu:9000/", "http://gpu:9000/v1/"])
def test_a_verifiers_address_is_read_as_people_type_it(text: str) -> None:
    settings = load(None, {}, {"verifier_urls": [text]})

    assert str(settings.verifiers[0]).rstrip("/") == "http://gpu:9000"


def test_one_mistake_is_one_line() -> None:
    with pytest.raises(WrongSettings, match=r"\Aedge\.verifier_urls\.0: it should be a .*\Z"):
        load(None, {}, {"verifier_urls": ["nonsense"]})


@pytest.mark.parametrize("url", ["http://user:s3cret@a", "http://s3cret@a", "http://:s3cret@a"])
@pytest.mark.parametrize("field", ["verifier_url", "verifier_urls"])
def test_a_secret_in_an_address_is_an_error_that_does_not_show_it(field: str, url: str) -> None:
    with pytest.raises(WrongSettings, match=f"{field}(.|\n)*PICOSPEC_VERIFIER_KEY") as raised:
        load(None, {}, {field: url if field == "verifier_url" else [url]})

    assert "s3cret" not in str(raised.value)


@pytest.mark.parametrize("field", ["api_keys", "verifier_key"])
def test_keys_do_not_belong_in_files(tmp_path: Path, field: str) -> None:
    with pytest.raises(ValueError, match=f"keep {field} out of files"):
        load(written(tmp_path, f'{field} = "secret"'), {}, {})


def test_keys_come_from_the_environment_and_are_not_shown() -> None:
    environ = {"PICOSPEC_API_KEYS": "key1, key2,", "PICOSPEC_VERIFIER_KEY": "three"}

    settings = load(None, environ, {})

    assert [key.get_secret_value() for key in settings.api_keys] == ["key1", "key2"]
    assert settings.shown_key == "three"
    assert "key1" not in repr(settings)


def test_clients_keys_are_shown_to_no_verifier() -> None:
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
    ],
)
def test_verifiers_are_one_or_several(
    tmp_path: Path, text: str, named: dict[str, object], expected: list[str]
) -> None:
    settings = load(written(tmp_path, text), {}, named)

    assert [str(url) for url in settings.verifiers] == expected


def test_the_shipped_file_leaves_the_verifier_to_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PICOSPEC_EDGE__VERIFIER_URL", "https://gpu")

    settings = load(Path("configs/edge.toml"), {}, {})

    assert [str(url) for url in settings.verifiers] == ["https://gpu/"]
