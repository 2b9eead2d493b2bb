"""Work that takes minutes leaves the loop's threads to prompts, which take milliseconds."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from edge_agent.draft import loading
from edge_agent.draft.late import Drafts
from edge_agent.draft.target_tokenizer import TargetTokenizer
from edge_agent.link.names import Name
from edge_agent.link.verifier import Verifier
from edge_agent.metrics import EdgeMetrics
from edge_agent.settings import load
from gateway.errors import ApiError
from gateway.turns import Turns
from local_models.compiler import MAX_WAITING, WAITING, GrammarCompiler
from local_models.confined import Worker
from local_models.errors import ModelError
from local_models.store import open_store
from tests.edge_agent.fakes import FACTS, FakeVerifier
from tests.guards import GUARD_S
from tests.local_models.grammars.small import TOKENIZER


class Blocked:
    """Calls of it end when the test does."""

    def __init__(self) -> None:
        self.over = threading.Event()
        self.calls = 0

    def __call__(self, *_: object, **__: object) -> Any:  # noqa: ANN401 - of many functions
        self.calls += 1
        self.over.wait(GUARD_S)
        raise OSError("it is over")


@pytest.fixture
def blocked() -> Iterator[Blocked]:
    blocked = Blocked()
    yield blocked
    blocked.over.set()


async def prompts_are_read_beside(blocked: Blocked, *work: Any, calls: int) -> None:  # noqa: ANN401
    """See that the loop's only shared thread works while all this work is blocked."""
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
    tasks = [asyncio.ensure_future(each) for each in work]
    async with asyncio.timeout(GUARD_S):
        while blocked.calls < calls:
            await asyncio.to_thread(int)
        await asyncio.to_thread(int)
    blocked.over.set()
    for task in tasks:
        task.cancel()
    with suppress(asyncio.CancelledError, OSError, ApiError, ModelError):
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_six_pulls(
    blocked: Blocked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "pull_if_missing", blocked)
    drafts = Drafts(load(None, {}, {}), open_store({"PICOSPEC_CACHE": str(tmp_path)}))
    pulls = (drafts.load(f"m{number}") for number in range(6))

    await prompts_are_read_beside(blocked, *pulls, calls=6)


async def test_two_names_at_a_silent_resolver_with_one_look_up_each(
    blocked: Blocked, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", blocked)
    for name in ("LOOK_S", "LOOK_AGAIN_S"):
        monkeypatch.setattr(f"edge_agent.link.names.{name}", 0.01)
    fake: Any = FakeVerifier()
    metrics = EdgeMetrics(CollectorRegistry())
    names = [Name(f"http://n{n}", lambda *_: Verifier(fake, metrics)) for n in range(2)]
    follow = [name.follow(lambda: None) for name in names]

    await prompts_are_read_beside(blocked, *follow, asyncio.sleep(0.1), calls=2)
    assert blocked.calls == 2


async def test_tokenizers_that_are_tried(blocked: Blocked) -> None:
    async def facts(_: str = "") -> object:
        return FACTS

    cache: Any = SimpleNamespace(find=blocked)
    verifiers: Any = SimpleNamespace(facts=facts)
    sources = [TargetTokenizer(verifiers, cache, None) for _ in range(6)]

    await prompts_are_read_beside(blocked, *(source() for source in sources), calls=6)


@pytest.mark.system
async def test_grammars_that_are_tried(
    blocked: Blocked, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Worker, "ask", blocked)
    compiler = GrammarCompiler(TOKENIZER, Turns(1, MAX_WAITING, WAITING).take)
    work = compiler.check(b'{"choice": ["word"]}', "ann")

    await prompts_are_read_beside(blocked, work, calls=1)
