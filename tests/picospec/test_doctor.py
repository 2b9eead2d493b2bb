"""What the doctor finds on this machine and at its verifiers, and what it advises."""

from __future__ import annotations

import asyncio
import json
import os
import re
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, replace
from importlib.metadata import requires
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import msgspec
import pytest
import uvicorn
from prometheus_client import CollectorRegistry
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from edge_agent.app import open_verifiers
from edge_agent.link.verifier import FACTS_PATH, START_PLUGIN, Verifier
from edge_agent.metrics import EdgeMetrics
from edge_agent.settings import EdgeSettings, load
from gateway.errors import ApiError, EngineFault, Unavailable
from local_models.errors import CannotOpen
from local_models.llama_cpp.devices import Device
from local_models.llama_cpp.library import INSTALL, Library
from local_models.llama_cpp.model import Context, Model
from local_models.llama_cpp.segments import Segment
from local_models.store import open_store
from local_models.vocabulary import Vocabulary
from picospec.backends import findings as backends
from picospec.draft_checks import (
    check_edge_memory,
    check_gain,
    check_pace,
    check_speed,
    check_vocabulary,
    draft_choice,
)
from picospec.expecting import CONTEXT_TOKENS, SAMPLE_TOKENS, MeasuredPace, TimedTarget, agreed
from picospec.findings import Finding, report
from picospec.machine_checks import (
    check_cache,
    check_engine,
    check_models,
    check_port,
    check_verifier_memory,
)
from picospec.up import told
from picospec.verifier_checks import (
    check_context,
    check_protocol,
    check_verifier,
    each_alone,
    encryption,
    not_reached,
)
from speculation.model_facts import ModelFacts
from tests.edge_agent.fakes import FACTS
from tests.picospec.screen import Screen
from verifier.settings import load as load_verifier


def test_an_engine_that_cannot_be_imported_fails_with_its_reason() -> None:
    broken = Library("no_such_engine")

    finding = check_engine(lambda: broken.llama_decode)

    assert not finding.ok
    assert "not installed" in finding.found
    assert INSTALL in finding.remedy
    assert f'{INSTALL.removeprefix("pip install ")}; extra == "llama"' in (
        requires("picospec") or ()
    )
    assert check_engine(lambda: broken.llama_decode, needed=False).ok


def test_a_cache_that_is_a_file_fails(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("")

    assert check_cache(tmp_path / "fresh").ok
    assert not check_cache(tmp_path / "cache").ok


def test_a_model_fails_if_it_must_be_here_or_is_damaged(tmp_path: Path) -> None:
    store = open_store({"PICOSPEC_CACHE": str(tmp_path)})
    for name in ("smollm2", "no-such-model"):
        needed = check_models(store, name)
        assert (needed.ok, needed.remedy) == (False, f"picospec models pull {name}")
    missing = check_models(store, "smollm2-135m", needed=False)
    names, blobs = tmp_path / "models" / "names", tmp_path / "models" / "blobs"
    names.mkdir(parents=True)
    blobs.mkdir()
    blob = blobs / store.catalogue.models["smollm2-135m"].sha256
    blob.write_bytes(b"damaged")
    (names / "smollm2-135m.gguf").symlink_to(blob)

    damaged = check_models(store, "smollm2-135m", needed=False)

    assert missing.ok
    assert "not here" in missing.found
    assert not damaged.ok


@pytest.mark.system
def test_a_port_held_by_a_stranger_fails_and_names_the_way_out() -> None:
    with socket.socket() as stranger:
        stranger.bind(("127.0.0.1", 0))
        port = int(stranger.getsockname()[1])
        held = check_port("edge", port, "EDGE_PORT")

    assert check_port("edge", port, "EDGE_PORT").ok
    assert not held.ok
    assert "EDGE_PORT" in held.remedy


# What the doctor finds of backends and devices, and on the way to a verifier.

HOST = Device("CPU", "a processor", "CPU", "cpu", 1 << 30, 1 << 30)
CARD = Device("CUDA0", "a card", "CUDA", "gpu", 23 << 30, 24 << 30)
FAST = MeasuredPace(0.08, 0.004, 1.05, 0.01, 0.012, 0.05, {"code": 0.9, "prose": 0.5})
SLOW = replace(FAST, token_s=0.014, slowed=1.5, busy_step_s=0.014)


def facts(**named: int) -> ModelFacts:
    return msgspec.structs.replace(FACTS, **named)


@pytest.mark.parametrize(
    ("finding", "verdict", "said"),
    [
        (check_protocol(facts(protocol=6)), "ok", "version 6"),
        (check_protocol(facts(protocol=5)), "fail", "one version of PicoSpec"),
        (check_protocol(facts(protocol=7)), "fail", "one version of PicoSpec"),
        (check_context(facts(context_tokens=32768)), "ok", "32768 tokens"),
        (check_context(facts(context_tokens=16384)), "warn", "fewer llama.slots"),
        (check_vocabulary("padded", "separate"), "ok", "padding is never drawn"),
        (check_vocabulary("different", "coupled"), "warn", "the target's family gains more"),
        (check_vocabulary("different", "separate"), "fail", 'judge = "coupled"'),
        (check_speed(FAST), "ok", "the round trip takes 50 ms"),
        (check_speed(replace(FAST, draft_s=10.0)), "fail", "a smaller draft model"),
        (check_gain(FAST), "ok", "guesses 90% and 50% of the tokens"),
        (check_gain(SLOW), "warn", "a larger target"),
        (backends("CUDA", ["CUDA", "CPU"], [CARD, HOST])[0], "ok", "CUDA, CPU"),
        (
            backends("CUDA", ["CUDA", "CPU"], [CARD, HOST])[1],
            "ok",
            "CUDA0 (a card), 23,552 of 24,576 MiB free",
        ),
        (backends("CUDA", ["CPU"], [HOST])[1], "warn", "-DGGML_CUDA=on"),
        (backends("Vulkan", ["CPU"], [HOST])[1], "warn", "prebuilt wheel vulkan"),
        (backends(None, ["CPU"], [HOST])[1], "ok", "there is no GPU"),
    ],
    ids=lambda each: each.subject if isinstance(each, Finding) else str(each),
)
def test_a_report_says_of_each_finding_how_good_it_is_and_what_to_do(
    finding: Finding, verdict: str, said: str
) -> None:
    screen, good = Screen(width=400), Finding("a", True, "fine", "unused")

    assert report([good, finding], screen) is (verdict != "fail")
    *_, line = screen.text.splitlines()
    assert line.split()[0] == verdict
    assert said in line
    assert "unused" not in screen.text


async def _pieces(body: bytes) -> AsyncIterator[bytes]:
    yield body


@dataclass
class Timed:
    """A Verifier whose target takes these times, and knows the words that it has read, until it
    writes a longer answer."""

    first_s: float
    token_s: float
    row_s: float
    read: int = 0
    now_s: float = 0.0
    rtt_s: float = 0.05

    @asynccontextmanager
    async def ask(self, path: str, body: bytes) -> AsyncIterator[object]:
        asked = json.loads(body)
        tokens, words = asked["max_tokens"], len(asked["prompt"].split())
        unread, self.read = words - self.read, words if tokens == 1 else 0
        self.now_s += self.first_s + self.row_s * unread + self.token_s * (tokens - 1)
        text = "".join(f" {token}" for token in range(tokens))
        usage = {"prompt_tokens": words, "completion_tokens": tokens}
        said = json.dumps({"choices": [{"text": text}], "usage": usage}).encode()
        yield SimpleNamespace(status=200, headers={}, content=_pieces(said))


def settings(url: str) -> EdgeSettings:
    return load(None, {}, {"verifier_url": url, "draft_model": "smollm2"})


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("https://192.0.2.1", "accepted"),
        ("http://127.0.0.1:9000", "none needed"),
        ("http://192.0.2.1", "can be read"),
    ],
)
def test_a_link_without_tls_is_named_where_others_can_read_it(url: str, said: str) -> None:
    assert said in encryption(url)


@pytest.mark.parametrize(
    ("error", "subject", "remedy"),
    [
        (EngineFault("no", code="verifier_unauthorized"), "key", "PICOSPEC_VERIFIER_KEY"),
        (EngineFault("not a verifier"), "verifier", "another service"),
        (Unavailable("no route"), "verifier", "firewall"),
        (Unavailable("invalid peer certificate: Unknown"), "certificate", "verifier_ca"),
    ],
)
def test_what_stopped_the_edge_is_named_with_a_remedy(
    error: ApiError, subject: str, remedy: str
) -> None:
    *before, last = not_reached(error, "https://gpu.example:9000")

    assert all(finding.ok for finding in before)
    assert (last.subject, last.ok) == (subject, False)
    assert remedy in last.remedy


def test_a_draft_model_is_the_one_that_the_settings_name_unless_they_want_none(
    tmp_path: Path,
) -> None:
    store = open_store({"PICOSPEC_CACHE": str(tmp_path)})
    vocabulary = Vocabulary((b"a",), frozenset(), frozenset())

    for named, name in {"none": None, "small": "small"}.items():
        settings = load(None, {}, {"draft_model": named})
        assert draft_choice(settings, store, FACTS, vocabulary).name == name


@pytest.mark.system
@pytest.mark.parametrize(("path", "said"), [("/v1/models", "plugin"), (FACTS_PATH, "HTTP/1.1")])
async def test_a_server_without_the_plugin_is_told_from_none_with_its_operators_command(
    path: str, said: str, tmp_path: Path
) -> None:
    async def models(_: Request) -> JSONResponse:
        return JSONResponse({"object": "list", "data": []})

    listening = socket.create_server(("127.0.0.1", 0))
    app = Starlette(routes=[Route(path, models)])
    server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
    serving = asyncio.create_task(server.serve([listening]))
    port = listening.getsockname()[1]
    chosen, metrics = settings(f"http://127.0.0.1:{port}"), EdgeMetrics(CollectorRegistry())
    (verifier,) = open_verifiers(chosen, metrics).all

    with pytest.raises(Unavailable, match=said) as raised:
        await verifier.facts()
    found = await check_verifier(
        chosen, open_store({"PICOSPEC_CACHE": str(tmp_path)}), verifier
    )
    server.should_exit = True
    await serving

    assert (START_PLUGIN in raised.value.message) is (said == "plugin")
    assert [(each.ok, START_PLUGIN in each.remedy) for each in found] == [(False, True)]


@pytest.mark.system
def test_a_verifier_elsewhere_must_answer_and_one_here_need_not_yet(tmp_path: Path) -> None:
    async def verdict(host: str, *, named: bool = False) -> bool:
        with socket.socket() as closed:
            closed.bind(("127.0.0.1", 0))
            chosen = settings(f"http://{host}:{closed.getsockname()[1]}")
            (verifier,) = open_verifiers(chosen, EdgeMetrics(CollectorRegistry())).all
            store = open_store({"PICOSPEC_CACHE": str(tmp_path)})
            findings = await check_verifier(chosen, store, verifier, named=named)
            return all(finding.ok for finding in findings)

    assert asyncio.run(verdict("localhost"))
    assert not asyncio.run(verdict("localhost", named=True))
    assert not asyncio.run(verdict("127.0.0.2"))


def test_up_tells_the_gain_and_what_would_make_it_larger() -> None:
    short = Finding("context", True, "8192 tokens", "agents need more", warns=True)
    cross_vocabulary, gain = check_vocabulary("different", "coupled"), check_gain(FAST)

    lines = told([short, check_vocabulary("padded", "coupled"), cross_vocabulary, gain])

    assert (
        lines[0]
        == f"Vocabulary: {cross_vocabulary.found}. What to do: {cross_vocabulary.advice}."
    )
    assert lines[1:] == [f"E{gain.found[1:]}."]


@pytest.mark.parametrize("error", [Unavailable("gone"), CannotOpen("gone")])
async def test_an_end_that_cannot_be_timed_is_said_with_the_reason(error: Exception) -> None:
    async def measuring() -> MeasuredPace:
        raise error

    (finding,) = await check_pace(measuring())

    assert (finding.ok, "gone" in finding.found) == (False, True)


def test_the_gain_is_predicted_by_the_text() -> None:
    gains, none = FAST.gains(), SLOW.gains()

    assert gains["code"] > 1.5 * gains["prose"] > 1.4
    assert all(0.9 < gain < 1.05 for gain in none.values())


async def test_the_first_token_and_the_link_are_no_part_of_a_tokens_time() -> None:
    timed = Timed(first_s=0.2, token_s=0.01, row_s=0.005)
    target = TimedTarget(cast(Verifier, timed), FACTS, lambda: timed.now_s)

    answer, row_s = await target.answer("one"), await target.row_s("one")

    assert (answer.token_s, row_s) == (pytest.approx(0.01), pytest.approx(0.005))
    assert answer.text == "".join(f" {i}" for i in range(SAMPLE_TOKENS))


@pytest.mark.models
def test_a_draft_model_agrees_with_itself_and_not_with_another_text() -> None:
    (path,) = open_store(os.environ).pull("smollm2", lambda what, done, total: None, "draft")
    with closing(Model(path)) as model, closing(Context(model, CONTEXT_TOKENS)) as context:
        prompt, answer = "The keeper of the lighthouse", ""
        for _ in range(8):
            context.truncate(0, 0)
            tokens = [*model.raw_beginning, *model.tokenize(prompt + answer, special=False)]
            context.decode([Segment(0, 0, tokens, 1)])
            best = int(context.logits(0).argmax())
            answer += model.vocabulary.piece(best, special=False).decode()

        assert agreed(context, prompt, answer) >= 0.9  # all of 8 or more, none of them certain
        assert agreed(context, prompt, " zinc violet 77 under Lima quorum;") < 0.3


def test_each_verifier_is_checked_with_the_settings_of_its_model() -> None:
    of_model = {"name": "m", "verifier_urls": ["http://b", "http://c"], "draft_model": "d"}
    settings = load(None, {}, {"verifier_urls": ["http://a"], "models": [of_model]})

    alone = [*each_alone(settings)]
    urls = [
        [v.url for v in open_verifiers(each, EdgeMetrics(CollectorRegistry())).all]
        for each in alone
    ]
    assert urls == [["http://a"], ["http://b"], ["http://c"]]
    assert {each.models[0].draft_model for each in alone} == {"d"}


@pytest.mark.models
def test_the_memory_of_both_services_is_told_before_a_model_loads() -> None:
    store, verifier = open_store(os.environ), load_verifier(None, {}, {})

    (finding,) = check_verifier_memory(store, "smollm2", verifier)
    edge = check_edge_memory(store.find("smollm2", "draft").path, load(None, {}, {}))

    for each in (finding, edge):
        assert each.ok
        assert re.match(r"takes \d\.\d GB: weights 0\.1 GB, KV \d\.\d GB, and ", each.found)
    assert check_verifier_memory(store, "nothing-of-the-kind", verifier) == []
