"""docs/protocol.md says what the code does: every example, every layout, every test vector."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from picospec.speculation import distributions as noise
from picospec.speculation import messages, wire
from picospec.speculation import separate as verifier
from picospec.speculation.distributions import Q_SCALE
from picospec.verifier.sessions import streams

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
    record, asking = wire.RecordDecoder().feed(bytes.fromhex(dump))

    assert wire.encode_record(record.session, record.frames) + wire.ASK == bytes.fromhex(dump)
    assert record.frames in [bytes.fromhex(example) for example, _ in BLOCKS]
    assert asking == wire.Record()


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
        f"1 to {wire.MAX_VARINT_BYTES} bytes",
        f"in 1/{Q_SCALE}, 1 to {Q_SCALE}",
        f"at most {wire.MAX_RECORD_BYTES}",
        f"no record has come\nfor {streams.SILENT_S:g} s",
        f"when {streams.MAX_UNREAD_BYTES >> 10} KiB are unread",
        f"one byte, {wire.ACKNOWLEDGED.hex()}",
        f"at most {verifier.HEAD_TOKENS} tokens",
        f"{verifier.HEAD_COVERS:.1%}".replace("%", " %"),
        f"version {messages.PROTOCOL_VERSION}",
    ],
)
def test_the_numbers_are_the_codes(fact: str) -> None:
    assert fact in PAGE
