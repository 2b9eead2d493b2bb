"""What memory keeps is bounded in bytes; what it drops dies with all that was made of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from weakref import ref

import pytest
from msgspec.structs import replace
from prometheus_client import CollectorRegistry

from edge_agent.draft.drafter import NoDrafter
from edge_agent.draft.open_tokenizers import OpenTokenizers
from edge_agent.draft.target_tokenizer import TargetTokenizer
from edge_agent.draft_grammars import EdgeGrammars
from edge_agent.proposals import EdgeAnswerCaches
from edge_agent.served import ServedModel
from gateway.keys import KeyLimits
from gateway.output.output_format import OutputFormats
from gateway.tenant_limits import Tenant, TenantMetrics
from local_models.confined import Worker
from local_models.llama_cpp.footprint import TOKEN_BYTES
from local_models.tokenizer import Tokenizer
from local_models.tokenizer_cache import TokenizerCache
from local_models.tokenizer_file import TokenizerFile
from tests.edge_agent.fakes import FACTS, TokenizerVerifier
from tests.hostile.byte_tokenizer import made
from tests.local_models.grammars.small import asking

KEPT = 2
ROOM_BYTES = KEPT * 256 * TOKEN_BYTES


class Engine:
    """The part of an engine that has something of a tokenizer."""

    def __init__(self) -> None:
        self.grammars = EdgeGrammars()

    async def close(self) -> None:
        await self.grammars.close()


@pytest.fixture
def workers(monkeypatch: pytest.MonkeyPatch) -> list[ref[Worker]]:
    """The helper processes. No tokenizer is tried out before it is opened."""
    begun = list[ref[Worker]]()
    begin = Worker.__init__

    def noted(self: Worker, module: str) -> None:
        begin(self, module)
        begun.append(ref(self))

    monkeypatch.setattr(Worker, "__init__", noted)
    monkeypatch.setattr("local_models.tokenizer_cache._try_out", lambda packed: None)
    return begun


def files(count: int) -> list[TokenizerFile]:
    return [replace(made(), template="a", padding=number) for number in range(count)]


@pytest.mark.system
async def test_a_dropped_tokenizer_dies_with_its_helpers(
    tmp_path: Path, workers: list[ref[Worker]]
) -> None:
    open_ones, cache = OpenTokenizers(ROOM_BYTES), TokenizerCache(tmp_path)
    styles, alive = OutputFormats(), list[ref[Tokenizer]]()
    models = list[ServedModel]()

    async def use(file: TokenizerFile, number: int) -> None:
        verifiers: Any = TokenizerVerifier(file)
        source, engine = TargetTokenizer(verifiers, cache, None, open_ones), Engine()
        served: Any = engine
        models.append(ServedModel(f"m{number}", verifiers, source, NoDrafter(), served, (), ()))
        tokenizer = await source()
        styles.find(tokenizer)
        await engine.grammars.compile(asking(choice=["ab"]), tokenizer)
        alive.append(ref(tokenizer))

    for number, file in enumerate(files(KEPT + 2)):
        await use(file, number)
        for model in models:
            if model._introducing is not None:  # it lets go of what it has made
                await model._introducing

    assert [tokenizer() is not None for tokenizer in alive] == [False] * 2 + [True] * KEPT
    running = [worker() for worker in workers]
    assert sum(each is not None and each.process.poll() is None for each in running) <= 2 * KEPT
    assert all(model.tokenizer.digest == "" for model in models[:2])


@pytest.mark.system
async def test_a_verifier_that_alternates_has_each_tokenizer_opened_once(
    tmp_path: Path, workers: list[ref[Worker]]
) -> None:
    first, second = files(2)
    verifiers: Any = TokenizerVerifier(first)
    source = TargetTokenizer(
        verifiers, TokenizerCache(tmp_path), None, OpenTokenizers(ROOM_BYTES)
    )
    for file in (first, second) * 3:
        verifiers.serve(file)  # opens it for itself
        await source()

    ours = sum(worker() is not None for worker in workers)
    assert ours == len({first.digest, second.digest})


def test_a_cache_dies_with_its_owner() -> None:
    answer_caches = EdgeAnswerCaches(100)
    owner = Tenant("ann", KeyLimits(), TenantMetrics(CollectorRegistry()))
    dies = ref(answer_caches.of(owner, FACTS))
    assert dies() is not None

    del owner

    assert dies() is None
