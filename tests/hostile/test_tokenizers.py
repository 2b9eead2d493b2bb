"""A tokenizer from a verifier: neither its failures, nor a full disk, nor a long text stop more
than the work that they belong to, and one that is dropped dies with all that was made of it."""

from __future__ import annotations

import errno
import os
import struct
import subprocess
import sys
import threading
from dataclasses import dataclass
from dataclasses import replace as replaced
from pathlib import Path
from typing import Any
from weakref import ref

import pytest
import tokenizers
from msgspec.structs import replace
from tokenizers import Regex, models, pre_tokenizers

from edge_agent.draft.drafter import NoDrafter
from edge_agent.draft.open_tokenizers import OpenTokenizers
from edge_agent.draft.target_tokenizer import TargetTokenizer
from edge_agent.draft_grammars import EdgeGrammars
from edge_agent.served import ServedModel
from gateway.app import create_app
from gateway.endpoints.services import Services, one_model
from gateway.errors import Unavailable
from gateway.hosting.settings import GatewaySettings
from gateway.output.output_format import OutputFormats
from gateway.ports import Facts, GatewayTokenizer
from local_models.confined import Worker, environment
from local_models.errors import CannotOpen
from local_models.hugging_face import HuggingFaceEncoder
from local_models.llama_cpp.footprint import TOKEN_BYTES
from local_models.store import open_store
from local_models.tokenizer import Tokenizer
from local_models.tokenizer_cache import MAX_KEPT, TokenizerCache
from local_models.tokenizer_file import TokenizerFile, tokenizer_file
from speculation.model_facts import ModelFacts
from tests.edge_agent.fakes import FACTS, TokenizerVerifier
from tests.gateway.scripted import ByteTokenizer, ScriptedEngine, client_of
from tests.guards import GUARD_S
from tests.local_models.grammars.small import asking


def made(split: str = " ") -> TokenizerFile:
    """Return a tokenizer whose tokens are bytes, and which splits texts at a pattern first."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = tokenizers.Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    parts = [pre_tokenizers.Split(Regex(split), "isolated"), byte_level]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(parts)  # type: ignore[assignment]
    return TokenizerFile("huggingface", tokenizer.to_str().encode())


def kept(folder: Path, file: TokenizerFile) -> bool:
    return TokenizerCache(folder).find(file.digest) is not None


def test_tokenizers_used_last_are_kept_and_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("local_models.tokenizer_cache._try_out", lambda packed: None)
    cache = TokenizerCache(tmp_path)
    files = [replace(made(), padding=number) for number in range(MAX_KEPT + 1)]
    for number, file in enumerate(files[:-1]):
        cache.keep(file.digest, file.pack())
        os.utime(tmp_path / file.digest, (number, number))

    assert kept(tmp_path, files[0])
    cache.keep(files[-1].digest, files[-1].pack())

    assert [kept(tmp_path, file) for file in files[:3]] == [True, False, True]
    assert len(list(tmp_path.iterdir())) == MAX_KEPT


def test_a_full_disk_costs_the_keeping_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, data: bytes) -> int:
        path.touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    file = made()

    assert TokenizerCache(tmp_path).keep(file.digest, file.pack()).encode("ab") == [64, 65]
    assert list(tmp_path.iterdir()) == []
    assert TokenizerCache(Path("/proc/none")).keep(file.digest, file.pack()).encode("a") == [64]


def test_a_torn_file_is_as_good_as_none(tmp_path: Path) -> None:
    file = made()
    (tmp_path / file.digest).write_bytes(file.pack()[:50])

    assert not kept(tmp_path, file)


def test_a_tokenizer_that_panics_is_an_error_like_any_other(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Its pattern takes exponential time, until the library gives up."""
    file = made("(x+x+)+y")

    with pytest.raises(ValueError, match="retry-limit"):
        file.open().encode("x" * 60)
    for number, pattern in enumerate(("(a+a+)+b", "( +$)+\\1|( +  +)+y")):
        file = made(pattern)  # the trial's own text has 256 times "a", and as many spaces
        with pytest.raises(CannotOpen):
            TokenizerCache(tmp_path / str(number)).keep(file.digest, file.pack())


def test_other_threads_run_while_a_long_text_is_tokenised() -> None:
    encoder = HuggingFaceEncoder(made().data)
    ended, ticks = threading.Event(), 0

    def tokenise() -> None:
        encoder.tokenize("word " * 100_000, True)
        ended.set()

    threading.Thread(target=tokenise).start()
    while not ended.wait(0.001):
        ticks += 1

    assert ticks > 2  # it would be 1 at most, had the tokenizer kept them waiting


def test_markers_are_text_or_tokens_in_any_number_of_threads() -> None:
    tokenizer = tokenizers.Tokenizer.from_buffer(made().data)
    tokenizer.add_special_tokens(["<|end|>"])
    encoder = HuggingFaceEncoder(tokenizer.to_str().encode())
    wrong: list[bool] = []

    def tokenise(special: bool) -> None:
        for _ in range(200):
            if (encoder.tokenize("<|end|>", special) == [256]) != special:
                wrong.append(special)

    threads = [threading.Thread(target=tokenise, args=(n % 2 == 0,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert not wrong


SPLITS = """
import sys
from local_models.tokenizer_file import TokenizerFile, tokenizer_file
tokenizer = TokenizerFile.unpack(sys.stdin.buffer.read()).open()
for text in ("a", ".", " ", "\u4e2d"):
    tokens = tokenizer.encode(text * 65_536)
    assert b"".join(map(tokenizer.piece, tokens)).decode() == text * 65_536
"""


@pytest.mark.models
@pytest.mark.parametrize("split", ["smollm", "tekken", "gpt-4o", "deepseek-llm"])
def test_one_long_word_does_not_end_the_process(split: str) -> None:
    """For some ways of splitting texts llama.cpp recurses at each character of a word."""
    file = tokenizer_file(open_store(os.environ).find("smollm2", "target").path)
    before, after = file.data.split(b"tokenizer.ggml.pre")
    kind, length = struct.unpack_from("<IQ", after)
    name = struct.pack("<IQ", kind, len(split)) + split.encode()
    packed = replace(
        file, data=before + b"tokenizer.ggml.pre" + name + after[12 + length :]
    ).pack()

    command = [sys.executable, "-c", SPLITS]
    assert (
        subprocess.run(command, input=packed, env=environment(), timeout=GUARD_S).returncode
        == 0
    )


A, B = made(), made("b")


@dataclass
class Flapping:
    """The verifier in use has the one tokenizer or the other."""

    file: TokenizerFile

    async def facts(self) -> ModelFacts:
        return replace(FACTS, vocabulary=self.file.digest, vocabulary_size=256)

    async def tokenizer(self) -> bytes:
        return self.file.pack()


async def test_the_tokenizer_is_that_of_the_facts_or_an_error_to_try_again(
    tmp_path: Path,
) -> None:
    verifier = Flapping(A)
    target = TargetTokenizer(verifier, TokenizerCache(tmp_path), None)

    own = await target(A.digest)
    verifier.file = B
    assert await target(A.digest) is own
    other = await target()
    assert other is not own
    verifier.file = A
    assert await target() is own  # one that alternates has each opened once
    verifier.file = B
    assert await target() is other
    verifier.file = replace(A, padding=1)
    assert await target(B.digest) is other
    with pytest.raises(Unavailable, match="another one"):
        await target("0" * 32)


async def test_a_request_asks_for_the_tokenizer_of_its_facts() -> None:
    class Described(ScriptedEngine):
        async def facts(self) -> Facts:
            return replaced(await super().facts(), vocabulary="that one")

    asked = []

    async def source(vocabulary: str) -> GatewayTokenizer:
        asked.append(vocabulary)
        return ByteTokenizer()

    bodies = {
        "/v1/completions": {"prompt": "a"},
        "/tokenize": {"prompt": "a"},
        "/detokenize": {"tokens": [1]},
    }
    settings = GatewaySettings()
    app = create_app(Services(one_model(Described(), source, settings), settings))
    async with client_of(app) as client:
        for path, body in bodies.items():
            assert (await client.post(path, json=body)).status_code == 200

    assert asked == ["that one"] * 3


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
