"""Messages survive the wire in any pieces, as the protocol's page says; other bytes do not."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from speculation import codecs, messages, model_facts, noise, upload_records, wire
from speculation import separate as verifier
from speculation.codecs import UINT, Reader
from speculation.distributions import Q_SCALE
from speculation.errors import (
    LocalProtocolError,
    MalformedFrame,
)
from speculation.messages import (
    CachedPromptTokens,
    Commit,
    Draft,
    Fault,
    Finish,
    Heartbeat,
    Message,
    Multiplexed,
    Open,
    Opened,
    Recovered,
    Redraw,
    Reject,
    Sampling,
    TokenLogprob,
    Totals,
)
from speculation.model_facts import Limits
from verifier.sessions import upstream

UINTS = st.one_of(st.integers(0, 300), st.integers(0, 2**63 - 1))
TOKENS = st.lists(UINTS, max_size=12).map(tuple)
FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)
SECONDS = st.integers(0, 10**7).map(lambda tenths_ms: tenths_ms / 10_000)
TIMEOUTS = st.floats(0.125, 86400, width=32)
SPARSE = st.lists(st.tuples(UINTS, FLOATS), max_size=6).map(tuple)
FINITE = st.floats(allow_nan=False, allow_infinity=False)
SAMPLINGS = st.builds(
    Sampling,
    temperature=FINITE,
    min_p=FINITE,
    top_k=st.integers(0, 2**31),
    top_p=FINITE,
    extras=st.dictionaries(
        st.text(max_size=8), st.integers().map(lambda n: msgspec.Raw(str(n).encode()))
    ),
)


MESSAGES: st.SearchStrategy[Message] = st.one_of(
    st.builds(
        Open,
        st.text(),
        st.text(),
        TOKENS,
        SAMPLINGS,
        st.integers(0, 2**64 - 1),
        UINTS,
        TOKENS,
        st.sampled_from(["coupled", "separate"]),
        st.sampled_from(["always", "auto", "never"]),
        st.none() | UINTS,
        TOKENS,
        st.text(),
        st.booleans(),
        TOKENS,
        st.text(),
        st.booleans(),
        UINTS,
    ),
    st.just(Heartbeat()),
    st.just(Multiplexed()),
    st.builds(CachedPromptTokens, UINTS),
    st.builds(Draft, UINTS, UINTS, UINTS, TOKENS, pauses=st.booleans()),
    st.builds(Draft, UINTS, UINTS, UINTS, TOKENS, TOKENS.filter(len), st.booleans()),
    st.builds(Recovered, UINTS, UINTS, UINTS),
    st.builds(Redraw, UINTS, UINTS, UINTS),
    st.builds(
        Opened,
        st.from_regex("[A-Za-z0-9_-]{1,64}", fullmatch=True),
        st.builds(Limits, st.integers(1, 256), st.integers(1, 4096), TIMEOUTS),
    ),
    st.builds(
        Commit,
        UINTS,
        UINTS,
        TOKENS,
        UINTS,
        UINTS,
        SECONDS,
        SECONDS,
        st.none() | st.lists(st.builds(TokenLogprob, FLOATS, SPARSE), max_size=4).map(tuple),
    ),
    st.builds(Reject, UINTS, UINTS, UINTS, SPARSE, FLOATS, SPARSE),
    st.builds(
        Finish,
        st.sampled_from(["stop", "length"]),
        st.builds(Totals, UINTS, UINTS, UINTS, UINTS, UINTS),
    ),
    st.builds(Fault, st.text(), st.text(), st.booleans()),
)


def frame(body: bytes) -> bytes:
    return UINT.write(len(body)) + body


def decoded(data: bytes) -> list[Message]:
    decoder = wire.Decoder()
    messages = list(decoder.feed(data))
    decoder.close()
    return messages


@given(MESSAGES)
def test_a_message_survives_the_wire(message: Message) -> None:
    assert decoded(wire.encode(message)) == [message]


@given(st.lists(MESSAGES, max_size=4), st.lists(st.integers(0, 10_000)))
def test_any_split_of_the_bytes_gives_the_same_messages(
    messages: list[Message], cuts: Sequence[int]
) -> None:
    data = b"".join(map(wire.encode, messages))
    ends = sorted({cut % (len(data) + 1) for cut in cuts} | {len(data)})
    decoder = wire.Decoder()

    received = [
        message
        for start, end in zip([0, *ends], ends, strict=False)
        for message in decoder.feed(data[start:end])
    ]

    decoder.close()
    assert received == messages


@given(MESSAGES, st.data())
def test_a_truncated_stream_is_malformed(message: Message, data: st.DataObject) -> None:
    whole = wire.encode(message)
    cut = data.draw(st.integers(1, len(whole) - 1))

    with pytest.raises(MalformedFrame):
        decoded(whole[:cut])


def test_surplus_bytes_in_a_frame_are_malformed() -> None:
    for message in (Redraw(1, 2, 1), Finish("stop"), Fault("a", "b"), Reject(1, 2, 0, (), 0.0)):
        body = wire.encode(message)[1:]

        with pytest.raises(MalformedFrame, match="1 surplus byte"):
            decoded(frame(body + b"\x00"))


@given(st.binary(max_size=64))
@example(b"\x01\x03")
def test_garbage_is_messages_or_malformed_never_another_error(data: bytes) -> None:
    try:
        messages = decoded(data)
    except MalformedFrame:
        return

    assert b"".join(map(wire.encode, messages)) == data


@given(
    st.sampled_from(
        [wire.PLAIN_COMMIT, *range(wire.NEAR_DRAFT, wire.NEAR_DRAFT + 2 * wire.NEAR)]
    ),
    st.lists(UINTS, max_size=9).map(lambda numbers: b"".join(map(UINT.write, numbers)))
    | st.binary(max_size=24),
)
@example(wire.NEAR_DRAFT, b"\x81\x00\x01\x05")
def test_frequent_messages_are_read_as_the_table_of_layouts_reads_them(
    kind: int, fields: bytes
) -> None:
    body = bytes([kind]) + fields

    def outcome(read: Callable[[], Message]) -> Message | str:
        try:
            return read()
        except MalformedFrame as error:
            return str(error)

    expected = outcome(lambda: wire.LAYOUTS[kind].read(Reader(body, 1)))
    assert outcome(lambda: decoded(frame(body))[0]) == expected


@given(MESSAGES, st.data())
def test_a_flipped_byte_is_another_message_or_malformed(
    message: Message, data: st.DataObject
) -> None:
    changed = bytearray(wire.encode(message))
    at = data.draw(st.integers(0, len(changed) - 1))
    changed[at] ^= data.draw(st.integers(1, 255))

    with suppress(MalformedFrame):
        decoded(bytes(changed))


def json_body(layout: int, *parts: bytes) -> bytes:
    return frame(bytes([layout]) + b"".join(parts))


def opened(name: bytes = b"\x01s", **limits: float) -> bytes:
    """The frame of an Opened with that name of its session, and these limits."""
    return json_body(16, name, wire.LIMITS.write(Limits(**limits)))  # type: ignore[arg-type]


NESTED = b'{"extras":{"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}}"
OPEN_HEAD = (b"\x01", b"\x01m", b"\x01v", b"\x00\x00\x00")

MALFORMED = {
    "an unknown type": frame(b"\x05"),
    "an empty frame": b"\x00",
    "a type alone": frame(b"\x03"),
    "a frame over the limit": UINT.write(wire.MAX_FRAME_BYTES + 1),
    "a length that never ends": b"\xff" * 9,
    "a length longer than it needs": b"\x83\x00\x04\x01\x01",
    "a number longer than it needs": frame(b"\x04\x81\x00\x01"),
    "a number that never ends": frame(b"\x04" + b"\xff" * 12),
    "a count beyond the frame": frame(b"\x03\x01\x01\x00\x00" + b"\xff" * 8 + b"\x7f"),
    "a flag that is not a flag": frame(b"\x03\x01\x01\x00\x02\x00\x00"),
    "a finish for no reason": frame(b"\x14\x02\x00\x00\x00\x00"),
    "text that is not UTF-8": frame(b"\x15\x01\xff\x00\x00"),
    "a probability that is infinite": frame(b"\x13\x00\x00\x00\x00\x00\x80\x7f\x00"),
    "a probability that is no number": frame(b"\x13\x00\x00\x00\x00\x00\xc0\x7f\x00"),
    "a name of a session with a slash": opened(b"\x03a/b"),
    "a name of a session without end": opened(b"\x41" + b"a" * 65),
    "a session that judges nothing": opened(max_verify=0),
    "a session that judges too much": opened(max_verify=257),
    "drafts too far ahead": opened(max_ahead=4097),
    "a timeout of none": opened(idle_timeout_s=0.0),
    "a timeout of years": opened(idle_timeout_s=1e9),
}


@pytest.mark.parametrize("data", MALFORMED.values(), ids=MALFORMED)
def test_what_encoding_cannot_have_produced_is_malformed(data: bytes) -> None:
    with pytest.raises(MalformedFrame):
        decoded(data)


@pytest.mark.parametrize("sampling", [b'{"penalty":1}', NESTED], ids=["a-field", "nested"])
def test_sampling_with_a_field_of_its_own_or_nested_without_end_is_malformed(
    sampling: bytes,
) -> None:
    with pytest.raises(MalformedFrame, match="Sampling: "):
        decoded(json_body(6, *OPEN_HEAD, UINT.write(len(sampling)), sampling))


def test_an_oversized_frame_is_rejected_before_it_is_buffered() -> None:
    decoder = wire.Decoder()
    length = UINT.write(wire.MAX_FRAME_BYTES + 1)

    assert list(decoder.feed(length[:2])) == []
    with pytest.raises(MalformedFrame, match=f"{wire.MAX_FRAME_BYTES + 1} bytes"):
        list(decoder.feed(length[2:]))


def test_the_largest_frame_passes_and_one_more_byte_is_our_own_fault() -> None:
    def fault(size: int) -> Fault:
        return Fault("", "x" * size)

    head = len(wire.encode(fault(1 << 21))) - 4 - (1 << 21)
    largest = fault(wire.MAX_FRAME_BYTES - head)

    assert decoded(wire.encode(largest)) == [largest]
    with pytest.raises(LocalProtocolError):
        wire.encode(fault(len(largest.text) + 1))


@pytest.mark.parametrize("number", [-1, 2**63])
def test_a_number_that_fits_no_varint_is_our_own_fault(number: int) -> None:
    with pytest.raises(LocalProtocolError):
        wire.encode(Redraw(0, number, 1))


def test_the_prompt_of_the_longest_context_fits_a_frame() -> None:
    prompt = tuple(np.random.default_rng(0).integers(0, 250_000, 1_000_000).tolist())

    assert wire.encode(Open("m", "v", prompt, Sampling(), 2**63 - 1, 1, ()))


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
