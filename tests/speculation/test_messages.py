"""What no honest edge sends is rejected by name, and changes nothing."""

from __future__ import annotations

import re
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest

from gateway.ports import Job, opening
from speculation import codecs, messages, model_facts, noise, upload_records, wire
from speculation import separate as verifier
from speculation.distributions import Q_SCALE
from speculation.errors import InvalidSetting, RemoteProtocolError
from speculation.messages import Draft, Open, Pushed, Recovered, Redraw, Sampling
from speculation.model_facts import Limits, ModelFacts
from speculation.verify_session import VerifyingSession
from tests.speculation.verifiers import V, rejecting, session, state
from verifier.sessions import upstream

DISHONEST: dict[str, tuple[VerifyingSession, Pushed, str]] = {
    "no tokens": (session(), Draft(0, 0, 0, ()), "Draft.tokens"),
    "not a token": (session(), Draft(0, 0, 0, (1, V)), "Draft.tokens"),
    "behind the prompt": (session(), Draft(0, 0, 1, (1,)), "Draft.offset"),
    "a gap to the text": (session(), Draft(0, 2, 1, (1,)), "Draft.offset"),
    "too far ahead": (session(), Draft(0, 0, 0, (1,) * 9), "Draft.start"),
    "weights in coupled": (session(), Draft(0, 0, 0, (1,), (5,)), "Draft.q"),
    "no weights in separate": (session("separate"), Draft(0, 0, 0, (1,)), "Draft.q"),
    "a weight too few": (session("separate"), Draft(0, 0, 0, (1, 2), (5,)), "Draft.q"),
    "a weight too many": (session("separate"), Draft(0, 0, 0, (1,), (5, 5)), "Draft.q"),
    "a weight of 0": (session("separate"), Draft(0, 0, 0, (1,), (0,)), "Draft.q"),
    "a weight over 1": (session("separate"), Draft(0, 0, 0, (1,), (Q_SCALE + 1,)), "Draft.q"),
    "nothing rejected": (session("separate"), Recovered(1, 0, 2), "Recovered.position"),
    "the rejected token again": (rejecting(), Recovered(1, 0, 1), "Recovered.token"),
    "impossible in p": (rejecting(), Recovered(1, 0, 4), "Recovered.token"),
    "beyond its place": (rejecting(), Recovered(1, 1, 2), "Recovered.position"),
    "over the text": (rejecting(7), Recovered(1, 0, 8), "Recovered.position"),
    "recovered in coupled": (session(), Recovered(1, 0, 2), "Recovered"),
    "a redraw in coupled": (session(), Redraw(0, 0, 1), "Redraw"),
    "drafts beyond the token owed": (rejecting(), Draft(1, 2, 0, (5,), (9,)), "Draft.offset"),
}


@pytest.mark.parametrize(("verifier", "lie", "field"), DISHONEST.values(), ids=DISHONEST)
def test_what_no_honest_edge_sends_is_rejected_by_field_and_changes_nothing(
    verifier: VerifyingSession, lie: Pushed, field: str
) -> None:
    before = state(verifier)

    with pytest.raises(RemoteProtocolError, match=f"^{field}: "):
        verifier.receive(lie)

    assert state(verifier) == before


# The session that a client asks for is the same at both ends.

FACTS = ModelFacts("big", 100, "print", 512, [7, 8], Limits(), ["coupled"], [])


def opened(**extras: object) -> Open:
    job = Job("r", (1, 2), 20, Sampling(0.5, 0.1, 3, 0.9), 9, 4, MappingProxyType(extras))
    return opening(job, FACTS)


def test_the_settings_travel_by_their_names() -> None:
    request = opened(logit_bias={5: 1}, min_tokens=2)

    given = request.sampling
    assert (given.temperature, given.min_p, given.top_k, given.top_p) == (0.5, 0.1, 3, 0.9)
    assert {k: bytes(v) for k, v in given.extras.items()} == {
        "logit_bias": b'{"5":1}',
        "min_tokens": b"2",
    }
    assert (request.seed, request.max_tokens, request.top_logprobs) == (9, 20, 4)


@pytest.mark.parametrize(
    ("extras", "stops"),
    [
        ({}, (7, 8)),
        ({"ignore_eos": False}, (7, 8)),
        ({"ignore_eos": True}, ()),
        ({"stop_token_ids": [5, 8]}, (7, 8, 5)),
        ({"ignore_eos": True, "stop_token_ids": [5, 8]}, (5, 8)),
    ],
)
def test_the_answer_stops_at_the_models_tokens_and_the_clients(
    extras: dict[str, object], stops: tuple[int, ...]
) -> None:
    request = opened(**extras)

    assert request.stop_tokens == stops
    assert request.sampling.extras == {}


@pytest.mark.parametrize("token", [-1, 100])
def test_what_is_no_token_cannot_stop(token: int) -> None:
    with pytest.raises(InvalidSetting, match="stop_token_ids"):
        opened(stop_token_ids=[1, token])


def test_a_prediction_is_no_sampling_setting() -> None:
    assert opened(prediction="text") == opened()


# docs/protocol.md says what the code does: every example, every layout, every test vector.

PAGE = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```frame\n([0-9a-f \n]+)\n(\w+\(.*?)\n```", PAGE, re.DOTALL)
SECTIONS = re.findall(r"^### (\d+)(?: to (\d+))? (\w+)", PAGE, re.MULTILINE)
VECTORS = re.findall(r"^\| (\d+) \| (-?\d+) \| (\d+) \| ([0-9a-f]{8}) \| (\S+) \|$", PAGE, re.M)


@pytest.mark.parametrize(("dump", "shown"), BLOCKS, ids=[shown[:12] for _, shown in BLOCKS])
def test_an_example_is_the_frame_of_its_message(dump: str, shown: str) -> None:
    message = eval(shown, vars(messages))

    assert wire.encode(message) == bytes.fromhex(dump)
    assert list(wire.Decoder().feed(bytes.fromhex(dump))) == [message]


def test_every_layout_has_a_section_and_an_example() -> None:
    sections = [range(int(first), int(last or first) + 1) for first, last, _ in SECTIONS]

    assert [kind for section in sections for kind in section] == list(wire.LAYOUTS)
    for section, (dump, _) in zip(sections, BLOCKS, strict=True):
        assert bytes.fromhex(dump)[1] in section
    assert [shown.split("(")[0] for _, shown in BLOCKS] == [name for *_, name in SECTIONS]


def test_the_record_carries_a_draft_of_the_page_and_asks() -> None:
    (dump,) = re.findall(r"```record\n([0-9a-f ]+)\n```", PAGE)
    record, asking = upload_records.RecordDecoder().feed(bytes.fromhex(dump))

    assert upload_records.encode_record(
        record.session, record.frames
    ) + upload_records.ASK == bytes.fromhex(dump)
    assert record.frames in [bytes.fromhex(example) for example, _ in BLOCKS]
    assert asking == upload_records.Record()


@pytest.mark.parametrize(("seed", "noise_index", "token", "hashed", "gumbel"), VECTORS)
def test_a_vector_is_the_noise(
    seed: str, noise_index: str, token: str, hashed: str, gumbel: str
) -> None:
    tokens = np.array([int(token)])

    assert int(noise._hash(int(seed), int(noise_index), tokens.astype(np.uint32))[0]) == int(
        hashed, 16
    )
    assert noise.gumbel(int(seed), int(noise_index), tokens) == pytest.approx([float(gumbel)])


def test_there_are_vectors() -> None:
    assert len(VECTORS) == 9


@pytest.mark.parametrize(
    "fact",
    [
        f"1 to {wire.MAX_FRAME_BYTES}",
        f"1 to {codecs.MAX_VARINT_BYTES} bytes",
        f"in 1/{Q_SCALE}, 1 to {Q_SCALE}",
        f"at most {upload_records.MAX_RECORD_BYTES}",
        f"no record has come for {upstream.SILENT_S:g} s",
        f"when {upstream.MAX_UNREAD_BYTES >> 10} KiB are unread",
        f"one byte, {upload_records.ACKNOWLEDGED.hex()}",
        f"at most {verifier.HEAD_TOKENS} tokens",
        f"{verifier.HEAD_COVERS:0.1%}".replace("%", " %"),
        f"version {model_facts.PROTOCOL_VERSION}",
    ],
)
def test_the_numbers_are_the_codes(fact: str) -> None:
    assert fact in " ".join(PAGE.split())
