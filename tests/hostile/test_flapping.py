"""Two verifiers of different models behind one edge: no prompt for one goes to the other."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import pytest

from picospec.edge_agent.draft_model.target_tokenizer import TargetTokenizer
from picospec.gateway.app import create_app
from picospec.gateway.errors import Unavailable
from picospec.gateway.hosting.settings import GatewaySettings
from picospec.gateway.ports import Facts
from picospec.gateway.tokenizer import Tokenizer
from picospec.models.tokenizing.tokenizer_cache import TokenizerCache
from picospec.models.tokenizing.tokenizer_file import TokenizerFile
from picospec.speculation.protocol.messages import ModelFacts
from tests.edge_agent.engines import FACTS
from tests.gateway.scripted import ByteTokenizer, ScriptedEngine, client_of
from tests.hostile.test_tokenizers import made

A, B = made(), made("b")


@dataclass
class Flapping:
    """The verifier in use has the one tokenizer or the other."""

    file: TokenizerFile

    async def facts(self) -> ModelFacts:
        return msgspec.structs.replace(FACTS, vocabulary=self.file.digest, vocabulary_size=256)

    async def tokenizer(self) -> bytes:
        return self.file.pack()


async def test_the_tokenizer_is_that_of_the_facts_or_an_error_to_try_again(
    tmp_path: Path,
) -> None:
    uplink = Flapping(A)
    target = TargetTokenizer(uplink, TokenizerCache(tmp_path), None)

    own = await target(A.digest)
    uplink.file = B
    assert await target(A.digest) is own
    other = await target()
    assert other is not own
    uplink.file = msgspec.structs.replace(A, padding=1)
    assert await target(B.digest) is other
    with pytest.raises(Unavailable, match="another one"):
        await target("0" * 32)


async def test_a_request_asks_for_the_tokenizer_of_its_facts() -> None:
    class Described(ScriptedEngine):
        async def facts(self) -> Facts:
            return replace(await super().facts(), vocabulary="that one")

    asked = []

    async def source(vocabulary: str) -> Tokenizer:
        asked.append(vocabulary)
        return ByteTokenizer()

    bodies = {
        "/v1/completions": {"prompt": "a"},
        "/tokenize": {"prompt": "a"},
        "/detokenize": {"tokens": [1]},
    }
    async with client_of(create_app(Described(), source, GatewaySettings())) as client:
        for path, body in bodies.items():
            assert (await client.post(path, json=body)).status_code == 200

    assert asked == ["that one"] * 3
