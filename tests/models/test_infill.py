"""A model fills in between two texts by its own markers, wherever its vocabulary has them."""

from __future__ import annotations

import pytest

from picospec.models.tokenizing.tokenizer import Tokenizer
from picospec.models.vocabulary import Vocabulary
from tests.models.test_tokenizer import BOS, ByteModel


def tokenizer(*markers: str, bos: bool = False) -> Tokenizer:
    """Return one whose markers are the tokens from 300 on."""
    pieces = [bytes([token % 256]) for token in range(300)]
    pieces += [marker.encode() for marker in markers]
    vocabulary = Vocabulary(tuple(pieces), frozenset(range(300, len(pieces))), frozenset())
    return Tokenizer(ByteModel((BOS,) if bos else (), vocabulary), None)


@pytest.mark.parametrize(
    "markers",
    [
        ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),
        ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),
        ("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),
        ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),  # noqa: RUF001
        ("▁<PRE>", "▁<SUF>", "▁<MID>"),
        (" <PRE>", " <SUF>", " <MID>"),
    ],
)
def test_prefix_suffix_and_middle_are_marked(markers: tuple[str, ...]) -> None:
    assert tokenizer(*markers).infill("ab", "c") == [300, *b"ab", 301, *b"c", 302]
    assert tokenizer(*markers, bos=True).infill("", "") == [BOS, 300, 301, 302]


def test_codestral_reads_the_suffix_first() -> None:
    assert tokenizer("[PREFIX]", "[SUFFIX]").infill("ab", "c") == [301, *b"c", 300, *b"ab"]


def test_a_marker_in_a_text_stays_text() -> None:
    marker = "<|im_end|>"

    tokens = tokenizer("<fim_prefix>", "<fim_suffix>", "<fim_middle>").infill(marker, "")

    assert tokens == [300, *marker.encode(), 301, 302]


@pytest.mark.parametrize("markers", [(), ("<fim_prefix>", "<fim_suffix>")])
def test_a_model_without_markers_cannot(markers: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="no tokens for filling in"):
        tokenizer(*markers).infill("a", "b")


@pytest.mark.parametrize(
    ("repository", "file", "before"),
    [
        (
            "<|repo_name|>",
            "<|file_sep|>",
            [303, *b"repository\n", 304, *b"a.py\nA", 304, *b"file\n"],
        ),
        (
            "<repo_name>",
            "<file_sep>",
            [303, *b"repository\n", 304, *b"a.py\nA", 304, *b"file\n"],
        ),
        (
            "<reponame>",
            "<filename>",
            [303, *b"repository\n", 304, *b"a.py\nA", 304, *b"file\n"],
        ),
        ("<|other|>", "<|file_separator|>", [304, *b"a.py\nA", 304, *b"file\n"]),
        ("<|other|>", "<|another|>", [*b"a.py\nA\n\n"]),
    ],
)
def test_snippets_of_other_files_come_before_as_the_model_knows_them(
    repository: str, file: str, before: list[int]
) -> None:
    model = tokenizer("<fim_prefix>", "<fim_suffix>", "<fim_middle>", repository, file)

    tokens = model.infill("ab", "c", [{"filename": "a.py", "text": "A"}], 100)

    assert tokens == [*before, *model.infill("ab", "c")]


def test_the_first_snippets_are_left_out_where_not_all_fit() -> None:
    model = tokenizer("<fim_prefix>", "<fim_suffix>", "<fim_middle>", "<|file_sep|>")
    snippets = [{"filename": name, "text": "text"} for name in "abc"]

    for most in range(50):
        tokens = model.infill("ab", "c", snippets, most)
        kept = tokens.count(303) - 1

        assert len(tokens) <= most or tokens == model.infill("ab", "c")
        if kept > 0:
            assert tokens == model.infill("ab", "c", snippets[3 - kept :], 100)
    assert kept == 3
