"""The edge gets the target's tokenizer once, and knows how the draft model is related to it."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import msgspec
import pytest
from structlog.testing import capture_logs

from edge_agent.draft import loading, target_tokenizer
from edge_agent.draft.target_tokenizer import TargetTokenizer
from gateway.errors import EngineFault
from local_models.store import open_store
from local_models.tokenizer_cache import TokenizerCache
from local_models.tokenizer_file import TokenizerFile, tokenizer_file
from tests.edge_agent.cross_vocabulary import model
from tests.edge_agent.fakes import TokenizerVerifier

pytestmark = pytest.mark.models


@pytest.fixture(scope="module")
def file() -> TokenizerFile:
    return tokenizer_file(open_store(os.environ).find("smollm2", "target").path)


async def test_the_tokenizer_is_sent_once_and_kept(file: TokenizerFile, tmp_path: Path) -> None:
    verifier, cache = TokenizerVerifier(file), TokenizerCache(tmp_path)
    draft = model("smollm2")

    for _ in range(2):
        target = TargetTokenizer(verifier, cache, draft)
        assert target.relation is None
        assert (await target()).vocabulary == draft.vocabulary
        await target()
        assert target.relation == "identical"
    assert verifier.sent == 1


async def test_a_draft_model_of_another_vocabulary_gets_a_translation(
    file: TokenizerFile, tmp_path: Path
) -> None:
    cross_vocabulary = model("qwen")
    verifier, cache = TokenizerVerifier(file), TokenizerCache(tmp_path)
    target = TargetTokenizer(verifier, cache, cross_vocabulary)

    tokenizer = await target()

    assert target.translation is not None
    prompt = tokenizer.chat([{"role": "user", "content": "hi"}])
    own = target.translation.prompt(prompt)
    assert own[0] == cross_vocabulary.vocabulary.markers["<|im_start|>"]


async def test_a_verifier_with_another_model_is_followed(
    file: TokenizerFile, tmp_path: Path
) -> None:
    verifier = TokenizerVerifier(file)
    target = TargetTokenizer(verifier, TokenizerCache(tmp_path), None)
    first = await target()
    verifier.serve(msgspec.structs.replace(file, template="{{ messages[0].content }}"))

    assert first.template != (await target()).template
    assert verifier.sent == 2


async def test_a_hostile_tokenizer_is_an_error_that_names_it(
    file: TokenizerFile, tmp_path: Path
) -> None:
    target = TargetTokenizer(
        TokenizerVerifier(file, b"hostile"), TokenizerCache(tmp_path), None
    )

    with pytest.raises(EngineFault, match="tokenizer") as raised:
        await target()

    assert raised.value.error_code == "bad_tokenizer"
    assert not os.listdir(tmp_path)


async def test_why_it_cannot_be_used_is_logged_once(
    file: TokenizerFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(target_tokenizer, "RETRY_S", 0.0)
    verifier = TokenizerVerifier(file, packed=b"none")

    with capture_logs() as logs, pytest.raises(TimeoutError):
        async with asyncio.timeout(0.5):
            await TargetTokenizer(verifier, TokenizerCache(tmp_path), None).introduce()

    assert verifier.sent > 1
    (line,) = logs
    assert "cannot be read" in line["reason"]


async def test_one_that_cannot_be_used_is_fetched_ever_more_rarely(
    file: TokenizerFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits = list[float]()

    async def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 7:
            raise TimeoutError

    monkeypatch.setattr(loading.asyncio, "sleep", sleep)
    target = TargetTokenizer(TokenizerVerifier(file, b"none"), TokenizerCache(tmp_path), None)
    with pytest.raises(TimeoutError):
        await target.introduce()

    assert waits == [4, 8, 16, 32, 60, 60, 60]
