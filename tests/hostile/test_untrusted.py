"""Whatever another process writes, it is a value or one named error, and stops nobody else."""

from __future__ import annotations

import asyncio
import json
import zlib
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic_core import from_json
from structlog.testing import capture_logs

from edge_agent.forwarding import addressed, fields_of, listed
from edge_agent.link.errors import VerifierResponse, from_answer
from edge_agent.link.names import Name
from edge_agent.link.verifier import Verifier
from edge_agent.link.verifiers import Verifiers
from gateway.background_work import start
from gateway.errors import ApiError, EngineFault, InvalidRequest
from local_models.errors import CannotOpen
from local_models.tokenizer_file import TokenizerFile
from speculation.model_facts import ModelFacts
from speculation.untrusted import Malformed, decode_json, decode_msgpack, encode_json
from tests.edge_agent.fakes import NAMED as FACTS
from tests.edge_agent.fakes import FakeVerifier, Fleet
from tests.edge_agent.proxying import OwnApi, before, saying
from tests.virtual_time import run

JSON = {"content-type": "application/json"}
DEEP = 3000
DEPTHS = st.integers(0, 1200) | st.just(DEEP) | st.just(100_000)


def nested(depth: int) -> bytes:
    return b"[" * depth + b"]" * depth


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)
TEXTS = st.one_of(
    st.binary(max_size=64),
    DEPTHS.map(nested),
    st.integers(1, 6000).map(lambda digits: b"9" * digits),
    st.sampled_from([b"1e999", b"-1e999", b"NaN", b'"\\ud800"', b"\xff", b'"\xff"']),
    VALUES.map(lambda value: json.dumps(value).encode()),
)
KEYS = [*ModelFacts.__struct_fields__, "error", "message", "load", "version", "more", "model"]
OBJECTS = st.dictionaries(st.sampled_from(KEYS), TEXTS, max_size=4).map(
    lambda fields: b"{%b}" % b",".join(b'"%b":%b' % (k.encode(), v) for k, v in fields.items())
)


def facts_with(field: bytes) -> bytes:
    return msgspec.json.encode(FACTS)[:-1] + b',"more":%b}' % field


FOREIGN = TEXTS | OBJECTS | TEXTS.map(facts_with)


@given(FOREIGN)
def test_json_is_a_value_or_malformed(text: bytes) -> None:
    kinds: list[Any] = [object, dict[str, msgspec.Raw], ModelFacts]
    for kind in kinds:
        with suppress(Malformed):
            encode_json(decode_json(text, kind))


@given(st.binary(max_size=64) | DEPTHS.map(lambda depth: b"\x91" * depth + b"\x90"))
def test_messagepack_is_a_value_or_malformed(data: bytes) -> None:
    with suppress(Malformed):
        decode_msgpack(data, object)


@given(FOREIGN)
def test_pydantic_has_no_other_error_than_a_value_error(text: bytes) -> None:
    with suppress(ValueError):
        from_json(text)


@given(st.integers(100, 599), FOREIGN)
def test_an_error_of_a_peer_is_an_api_error(status: int, text: bytes) -> None:
    assert isinstance(from_answer(VerifierResponse(status, text)), ApiError)


@given(FOREIGN)
def test_a_body_is_passed_on_or_refused(text: bytes) -> None:
    with suppress(InvalidRequest):
        listed("/v1/completions", text, ["m"])
    with suppress(InvalidRequest):
        assert b'"model":"m"' in addressed(fields_of(text), "m")


def _is_packable(value: object) -> bool:
    """Return True unless a whole number in it takes more than 64 bits."""
    with suppress(OverflowError):
        return bool(msgspec.msgpack.encode(value))
    return False


PACKED = st.one_of(
    st.binary(max_size=64),
    DEPTHS.map(lambda depth: b"\x81\xa9variables\x81\xa1a" + b"\x91" * depth + b"\x90"),
    st.fixed_dictionaries(
        {"kind": st.sampled_from(["gguf", "huggingface", "other"]), "data": st.binary()},
        optional={
            "variables": VALUES | st.dictionaries(st.text(), VALUES | st.binary() | DEPTHS),
            "eos": st.integers(-(2**40), 2**40) | st.none(),
            "stop_tokens": st.lists(st.integers(-(2**40), 2**40), max_size=3),
            "padding": st.integers(-(2**40), 2**40),
            "template": st.text(max_size=20),
        },
    )
    .filter(lambda fields: "variables" not in fields or _is_packable(fields["variables"]))
    .map(msgspec.msgpack.encode),
)


@given(PACKED)
def test_a_tokenizer_is_unpacked_or_cannot_be_opened(data: bytes) -> None:
    with suppress(CannotOpen):
        file = TokenizerFile.unpack(zlib.compress(data))
        assert len(file.digest) == 32
        json.dumps(file.variables)
        assert all(0 <= token < 1 << 31 for token in (*file.stop_tokens, file.padding))


@pytest.mark.system
async def test_a_body_that_nests_deeply_is_the_clients_error() -> None:
    path = "/v1/completions/render"
    api = OwnApi({path: []}, saying(b"[]"))
    body = b'{"model": "fake", "prompt": %b}'
    async with before(api) as client:
        for depth in (150, *range(700, 1000, 20), DEEP):
            answer = await client.post(path, content=body % nested(depth), headers=JSON)
            assert answer.status_code in (200, 400), depth

        assert answer.status_code == 400


MALICIOUS = facts_with(nested(DEEP))


def speaking(number: int, facts: bytes, fleet: Fleet) -> Verifier:
    fake: Any = FakeVerifier(url=f"http://v{number}", facts=facts)
    return Verifier(fake, fleet.metrics)


def test_beside_a_malicious_verifier_a_healthy_one_answers_and_the_log_has_a_line() -> None:
    async def main() -> None:
        fleet = Fleet()
        each = [
            speaking(0, MALICIOUS, fleet),
            speaking(1, msgspec.json.encode(FACTS), fleet),
        ]
        edge = Verifiers(each, fleet.metrics, 30.0)
        watching = asyncio.create_task(edge.watch())
        with capture_logs() as log:
            for _ in range(10):
                await asyncio.sleep(10)
                assert (await edge.facts()).model == FACTS.model

        assert not watching.done()
        (line,) = log
        assert (line["event"], line["url"]) == ("verifier", "http://v0")
        watching.cancel()
        await edge.close()

    run(main())


def test_each_name_is_followed_whatever_happens_to_another() -> None:
    async def main() -> None:
        fleet = Fleet(["10.0.0.1"])

        async def broken(host: str, port: int) -> Sequence[str]:
            raise LookupError("a bug")

        def make(_: Name, address: str) -> Verifier:
            return speaking(9, MALICIOUS, fleet)

        other = Name("http://other:9000", make, broken)
        edge = Verifiers([], fleet.metrics, 30.0, [other, fleet.name])
        watching = asyncio.create_task(edge.watch())
        await asyncio.sleep(30)

        assert not watching.done()
        assert "verifiers (10.0.0.1)" in [verifier.url for verifier in edge.all]
        assert (await edge.facts()).model == FACTS.model
        watching.cancel()
        await edge.close()

    run(main())


async def test_a_bug_in_reading_facts_is_an_error_of_that_verifier(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def bug(*_: object) -> ModelFacts:
        raise LookupError("a bug")

    monkeypatch.setattr(Verifier, "_read", bug)
    verifier = speaking(0, b"{}", Fleet())

    with pytest.raises(EngineFault, match="http://v0"):
        await verifier.facts()


async def test_a_task_that_ends_by_an_exception_is_seen() -> None:
    async def ends(error: Exception | None) -> None:
        await asyncio.sleep(0)
        if error is not None:
            raise error

    with capture_logs() as log:
        tasks = [
            start(ends(error)) for error in (LookupError("a bug"), EngineFault("told"), None)
        ]
        left = start(asyncio.sleep(9))
        left.cancel()
        await asyncio.wait([*tasks, left])
        await asyncio.sleep(0)

    (line,) = log
    assert line["event"] == "task_failed"
    assert "ends" in line["work"]
