"""The edge gets the target's tokenizer once, and knows how the draft model is related to it."""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import msgspec
import pytest
from structlog.testing import capture_logs

from picospec.edge_agent.draft_model import target_tokenizer
from picospec.edge_agent.draft_model.foreign.translation import Translation
from picospec.edge_agent.draft_model.target_tokenizer import TargetTokenizer
from picospec.gateway.errors import EngineFault
from picospec.models.store import open_store
from picospec.models.tokenizing.tokenizer_cache import TokenizerCache
from picospec.models.tokenizing.tokenizer_file import TokenizerFile, tokenizer_file
from picospec.models.vocabulary import Vocabulary
from picospec.speculation.protocol.messages import ModelFacts
from tests.edge_agent.engines import FACTS
from tests.edge_agent.foreign import model

pytestmark = pytest.mark.models


@pytest.fixture(scope="module")
def file() -> TokenizerFile:
    return tokenizer_file(open_store(os.environ).find("smollm2", "target").path)


def facts_of(file: TokenizerFile) -> ModelFacts:
    size = len(file.open().vocabulary.pieces)
    return msgspec.structs.replace(FACTS, vocabulary=file.digest, vocabulary_size=size)


@dataclass
class Verifier:
    """An uplink to a verifier with this tokenizer."""

    file: TokenizerFile
    packed: bytes | None = None
    sent: int = 0
    known: ModelFacts = field(init=False)

    def __post_init__(self) -> None:
        self.known = facts_of(self.file)

    async def facts(self) -> ModelFacts:
        return self.known

    async def tokenizer(self) -> bytes:
        self.sent += 1
        return self.file.pack() if self.packed is None else self.packed


async def test_the_tokenizer_is_sent_once_and_kept(file: TokenizerFile, tmp_path: Path) -> None:
    verifier, cache = Verifier(file), TokenizerCache(tmp_path)
    draft = file.open().vocabulary

    for _ in range(2):
        target = TargetTokenizer(verifier, cache, draft)
        assert target.relation is None
        assert (await target()).vocabulary == draft
        await target()
        assert target.relation == "identical"
    assert verifier.sent == 1


@pytest.mark.parametrize("size", [1000, 49151])
async def test_a_smaller_foreign_vocabulary_is_different(
    file: TokenizerFile, tmp_path: Path, size: int
) -> None:
    own = file.open().vocabulary
    foreign = Vocabulary(own.pieces[1 : size + 1], frozenset(), frozenset())
    target = TargetTokenizer(Verifier(file), TokenizerCache(tmp_path), foreign)

    await target()

    assert target.relation == "different"
    assert target.translation is None


async def test_a_draft_model_of_another_vocabulary_gets_a_translation(
    file: TokenizerFile, tmp_path: Path
) -> None:
    foreign = model("qwen")
    translate = partial(Translation, draft=foreign)
    verifier, cache = Verifier(file), TokenizerCache(tmp_path)
    target = TargetTokenizer(verifier, cache, foreign.vocabulary, translate)

    tokenizer = await target()

    assert target.translation is not None
    prompt = tokenizer.chat([{"role": "user", "content": "hi"}])
    own = target.translation.prompt(prompt)
    assert own[0] == foreign.vocabulary.markers["<|im_start|>"]


async def test_a_verifier_with_another_model_is_followed(
    file: TokenizerFile, tmp_path: Path
) -> None:
    verifier = Verifier(file)
    target = TargetTokenizer(verifier, TokenizerCache(tmp_path), None)
    first = await target()
    verifier.file = msgspec.structs.replace(file, template="{{ messages[0].content }}")
    verifier.known = facts_of(verifier.file)

    assert first.template != (await target()).template
    assert verifier.sent == 2


async def test_a_hostile_tokenizer_is_an_error_that_names_it(
    file: TokenizerFile, tmp_path: Path
) -> None:
    target = TargetTokenizer(Verifier(file, b"hostile"), TokenizerCache(tmp_path), None)

    with pytest.raises(EngineFault, match="tokenizer") as raised:
        await target()

    assert raised.value.error_code == "bad_tokenizer"
    assert not os.listdir(tmp_path)


async def test_why_it_cannot_be_used_is_logged_once(
    file: TokenizerFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(target_tokenizer, "RETRY_S", 0.0)
    verifier = Verifier(file, packed=b"none")

    with capture_logs() as logs, pytest.raises(TimeoutError):
        async with asyncio.timeout(0.5):
            await TargetTokenizer(verifier, TokenizerCache(tmp_path), None).introduce()

    assert verifier.sent > 1
    (line,) = logs
    assert "cannot be read" in line["reason"]
