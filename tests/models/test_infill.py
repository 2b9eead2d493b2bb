"""A model fills in between two texts by its own markers, wherever its vocabulary has them."""

from __future__ import annotations

import pytest

from picospec.models.tokenizer import Tokenizer
from tests.models.byte_model import ByteModel

PREFIX, SUFFIX, MIDDLE = 256, 257, 258
STARCODER = ("<fim_prefix>", "<fim_suffix>", "<fim_middle>")
BOS = 999


def tokenizer(*markers: str, begins: tuple[int, ...] = ()) -> Tokenizer:
    return Tokenizer(ByteModel(markers, begins), None)


@pytest.mark.parametrize(
    "markers",
    [
        ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),
        STARCODER,
        ("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),
        ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),  # noqa: RUF001
        ("▁<PRE>", "▁<SUF>", "▁<MID>"),
        (" <PRE>", " <SUF>", " <MID>"),
    ],
)
def test_prefix_suffix_and_middle_are_marked(markers: tuple[str, ...]) -> None:
    model, other = tokenizer(*markers), tokenizer(*markers, begins=(BOS,))

    assert model.infill("ab", "c") == [PREFIX, *b"ab", SUFFIX, *b"c", MIDDLE]
    assert other.infill("", "") == [BOS, PREFIX, SUFFIX, MIDDLE]


def test_codestral_reads_the_suffix_first() -> None:
    tokens = tokenizer("[PREFIX]", "[SUFFIX]").infill("ab", "c")

    assert tokens == [SUFFIX, *b"c", PREFIX, *b"ab"]


def test_a_marker_in_a_text_stays_text() -> None:
    marker = "<|im_end|>"

    tokens = tokenizer(*STARCODER, marker).infill(marker, "")

    assert tokens == [PREFIX, *marker.encode(), SUFFIX, MIDDLE]


@pytest.mark.parametrize("markers", [(), STARCODER[:2]])
def test_a_model_without_markers_cannot(markers: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="no tokens for filling in"):
        tokenizer(*markers).infill("a", "b")


SNIPPET = [260, *b"a.py\nA", 260, *b"file\n"]


@pytest.mark.parametrize(
    ("repository", "file", "before"),
    [
        ("<|repo_name|>", "<|file_sep|>", [259, *b"repository\n", *SNIPPET]),
        ("<repo_name>", "<file_sep>", [259, *b"repository\n", *SNIPPET]),
        ("<reponame>", "<filename>", [259, *b"repository\n", *SNIPPET]),
        ("<|other|>", "<|file_separator|>", SNIPPET),
        ("<|other|>", "<|another|>", [*b"a.py\nA\n\n"]),
    ],
)
def test_snippets_of_other_files_come_before_as_the_model_knows_them(
    repository: str, file: str, before: list[int]
) -> None:
    model = tokenizer(*STARCODER, repository, file)

    tokens = model.infill("ab", "c", [{"filename": "a.py", "text": "A"}], 100)

    assert tokens == [*before, *model.infill("ab", "c")]


def test_the_first_snippets_are_left_out_where_not_all_fit() -> None:
    model = tokenizer(*STARCODER, "<|file_sep|>")
    snippets = [{"filename": name, "text": "text"} for name in "abc"]

    for most in range(50):
        tokens = model.infill("ab", "c", snippets, most)
        kept = tokens.count(259) - 1

        assert len(tokens) <= most or tokens == model.infill("ab", "c")
        if kept > 0:
            assert tokens == model.infill("ab", "c", snippets[3 - kept :], 100)
    assert kept == 3
