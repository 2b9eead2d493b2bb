"""No body within the bounds stops an event loop, at either end and by any endpoint.

A beat measures for how long nothing else runs: the time between two heartbeats, or the
processor time that this process took meanwhile if that is less, so that a busy host does not
count. `pytest -rP` shows the worst body of each endpoint."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from edge_agent import app as edge
from edge_agent.settings import load as load_edge
from gateway.drain import Drain
from gateway.endpoints.bodies import MIN_LIMIT_BYTES
from gateway.hosting.server import serve, settle
from gateway.ports import Delta, Job
from local_models.store import open_store
from local_models.tokenizer_file import TokenizerFile, tokenizer_file
from speculation.messages import Open, TokenLogprob
from tests.gateway.scripted import ScriptedEngine, make_app, requests, served
from tests.guards import GUARD_S
from tests.hostile.small_values import CHAT
from tests.hostile.tight_bodies import bodies, chat, following, kept, proxied
from tests.verifier.conftest import free_port, serving
from tests.verifier.fake_target import FACTS, STREAMS, FakeTarget
from verifier.app import build
from verifier.settings import VerifierSettings, load
from verifier.target import Deliver

MOST_S, MOST_MIB = 0.5, 300
"""What a busy host may make of the mark, 0.1 s on two quiet cores, and of 100 MiB."""

CONTEXT_TOKENS = 32_768
TAKES_TOOLS = "qwen2.5-coder-0.5b"
"""A model whose chat template shows tools."""

SERVED = {CHAT: ["model", "messages", "max_tokens", "bad_words", "tools"]}
"""Only the verifier's own API serves such words, so an edge proxies them."""

PARTS = {CHAT: ["text"]}


class Worded(FakeTarget):
    """A target without a model that has a model's tokenizer, template and grammars."""

    def __init__(self, file: TokenizerFile) -> None:
        super().__init__(slots=256)
        self.describe(FACTS.model, file, CONTEXT_TOKENS, ["words"], served=SERVED, parts=PARTS)
        self.grammars.prepare()

    async def serve(
        self, session: str, request: Open, deliver: Deliver, tenant: str | None = None
    ) -> None:
        """Let no first token of a prompt choose how the target behaves."""
        prompt = (STREAMS, *request.prompt[1:])
        await super().serve(session, replace(request, prompt=prompt), deliver, tenant)


def verifier_of(port: int) -> VerifierSettings:
    given = {"port": port, "drain_timeout_s": 0.0, "sessions": {"max_sessions": 256}}
    return load(None, {}, given)


@asynccontextmanager
async def serving_end(end: str, file: TokenizerFile, folder: Path) -> AsyncIterator[int]:
    """Serve an end in this process, and give its port; an edge has a verifier in another."""
    if end == "verifier":
        async with served(build(verifier_of(1), lambda _: Worded(file))) as url:
            yield int(url.rsplit(":", 1)[1])
        return
    packed, port = folder / "tokenizer", free_port()
    packed.write_bytes(file.pack())
    given = {"draft_model": "none", "verifier_url": f"http://127.0.0.1:{port}"}
    store = open_store({"PICOSPEC_CACHE": str(folder)})
    command = [sys.executable, "-m", "tests.hostile.test_longest_stall", str(port), str(packed)]
    with serving(command, port, ""):
        async with served(edge.build(load_edge(None, {}, given), store, Drain())) as url:
            yield int(url.rsplit(":", 1)[1])


@dataclass
class Heartbeat:
    longest_s: float = 0.0
    every_s: float = 0.001

    async def run(self) -> None:
        while True:
            began, computed = time.monotonic(), time.process_time()
            await asyncio.sleep(self.every_s)
            passed = time.monotonic() - began - self.every_s
            self.longest_s = max(self.longest_s, min(passed, time.process_time() - computed))


def memory_mib(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) / 1024


def count_peak_anew() -> float:
    """Return the MiB that this process has now."""
    Path("/proc/self/clear_refs").write_text("5")
    return memory_mib("VmRSS")


@dataclass(frozen=True)
class Measured:
    stall_s: float
    grown_mib: float
    status: int
    answer: bytes


async def measured(heartbeat: Heartbeat, port: int, path: str, body: object) -> Measured:
    sent = body if isinstance(body, bytes) else json.dumps(body).encode()
    gc.collect()
    before = count_peak_anew()
    await asyncio.sleep(0.01)
    heartbeat.longest_s = 0.0
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = f"POST {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n"
    more = f"content-type: application/json\r\ncontent-length: {len(sent)}\r\n\r\n"
    writer.write(f"{head}{more}".encode() + sent)
    async with asyncio.timeout(GUARD_S):
        answer = await reader.read()
    writer.close()
    await asyncio.sleep(0.01)
    grown = memory_mib("VmHWM") - before
    return Measured(
        heartbeat.longest_s, grown, int(answer.split()[1]), answer.partition(b"\r\n\r\n")[2]
    )


@asynccontextmanager
async def beating() -> AsyncIterator[Heartbeat]:
    heartbeat = Heartbeat()
    running = asyncio.create_task(heartbeat.run())
    yield heartbeat
    running.cancel()


@pytest.fixture
def settled() -> Iterator[None]:
    yield
    gc.unfreeze()


def table(found: dict[tuple[str, str], Measured]) -> str:
    """Return the longest stall and the most memory by endpoint."""
    lines = []
    for endpoint in sorted({path for _, path in found}):
        rows = [(each, name) for (name, path), each in found.items() if path == endpoint]
        longest, slow = max(rows, key=lambda row: row[0].stall_s)
        most, large = max(rows, key=lambda row: row[0].grown_mib)
        lines.append(
            f"{endpoint:28}{longest.stall_s:6.3f} s {slow:32}{most.grown_mib:4.0f} MiB {large}"
        )
    return "\n".join(lines)


@pytest.mark.long
@pytest.mark.models
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells the peak of memory")
@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize(
    ("end", "model"),
    [("edge", TAKES_TOOLS), ("verifier", "smollm2-135m")],
)
async def test_no_body_within_the_bounds_stops_everybody(end: str, model: str) -> None:
    store = open_store(os.environ)
    file = tokenizer_file(store.find(model, "draft").path)
    pieces = file.open().vocabulary.pieces
    longest = max(range(len(pieces)), key=lambda token: len(pieces[token]))
    found: dict[tuple[str, str], Measured] = {}
    with tempfile.TemporaryDirectory() as folder:
        async with serving_end(end, file, Path(folder)) as port, beating() as heartbeat:
            await ready(port)
            settle()

            async def ask(name: str, path: str, body: object) -> Measured:
                found[name, path] = each = await measured(heartbeat, port, path, body)
                return each

            for each in bodies(MIN_LIMIT_BYTES, CONTEXT_TOKENS, longest):
                await ask(*each)
            for each in proxied(MIN_LIMIT_BYTES) if end == "edge" else ():
                await ask(*each)
            previous = None
            for _ in range(4):
                body = kept(MIN_LIMIT_BYTES, previous)
                previous = json.loads((await ask("kept", "/v1/responses", body)).answer)["id"]
            for each in following(MIN_LIMIT_BYTES, previous):
                await ask(*each)

    sys.stdout.write(table(found))
    assert not {name: each for name, each in found.items() if each.stall_s > MOST_S}
    assert not {name: each for name, each in found.items() if each.grown_mib > MOST_MIB}
    assert {each.status for each in found.values()} <= {200, 400, 413}


class Verbose(ScriptedEngine):
    """Generates 6,000 tokens, each with the 20 likeliest, whatever it is asked."""

    async def generate(self, job: Job) -> AsyncGenerator[Delta]:
        score = TokenLogprob(-0.123456789, tuple((token, -token / 7) for token in range(20)))
        for _ in range(6000):
            yield Delta((97,), job.top_logprobs and (score,), statistics=self.statistics)
            await asyncio.sleep(0)
        yield Delta((), None, "length", self.statistics)


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells the peak of memory")
@pytest.mark.usefixtures("settled")
async def test_no_end_of_a_long_answer_stops_everybody() -> None:
    found: dict[tuple[str, str], Measured] = {}
    asked, apart = requests(choices=8, top=20)
    async with served(make_app(Verbose(context_tokens=1 << 17))) as url, beating() as heartbeat:
        port = int(url.rsplit(":", 1)[1])
        settle()
        for kind, of in (("whole", asked), ("streamed", asked), ("background", apart)):
            for path, body in of.values():
                sent = {**body, "stream": kind != "whole"}
                found[f"{kind}: {path}", path] = await measured(heartbeat, port, path, sent)

    sys.stdout.write(table(found))
    assert {each.status for each in found.values()} == {200}
    assert not {name: each for name, each in found.items() if each.stall_s > MOST_S}


async def ready(port: int) -> None:
    async with asyncio.timeout(GUARD_S):
        while (await measured(Heartbeat(), port, CHAT, chat())).status != 200:  # noqa: ASYNC110
            await asyncio.sleep(0.1)


if __name__ == "__main__":
    file = TokenizerFile.unpack(Path(sys.argv[2]).read_bytes())
    settings = verifier_of(int(sys.argv[1]))
    serve(settings, lambda: build(settings, lambda _: Worded(file)))
