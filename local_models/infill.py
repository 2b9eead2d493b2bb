"""Makes prompts that ask a model for the text between a prefix and a suffix.

Models that can do this were trained with markers of their own, which are recognised by their
spelling. A vocabulary with all markers of a format counts as one of such a model. Some models
also have a marker that begins a file, so that a prompt can show other files of the
repository.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from itertools import chain
from typing import Final

from local_models.vocabulary import Vocabulary


class Hole(Enum):
    """A Hole is the place in a format for one of the given texts."""

    PREFIX = auto()
    SUFFIX = auto()


_FORMATS: Final[Sequence[Sequence[str | Hole]]] = (
    ("<|fim_prefix|>", Hole.PREFIX, "<|fim_suffix|>", Hole.SUFFIX, "<|fim_middle|>"),
    ("<fim_prefix>", Hole.PREFIX, "<fim_suffix>", Hole.SUFFIX, "<fim_middle>"),
    ("<fim-prefix>", Hole.PREFIX, "<fim-suffix>", Hole.SUFFIX, "<fim-middle>"),
    ("<｜fim▁begin｜>", Hole.PREFIX, "<｜fim▁hole｜>", Hole.SUFFIX, "<｜fim▁end｜>"),  # noqa: RUF001
    ("▁<PRE>", Hole.PREFIX, "▁<SUF>", Hole.SUFFIX, "▁<MID>"),
    (" <PRE>", Hole.PREFIX, " <SUF>", Hole.SUFFIX, " <MID>"),  # as llama.cpp spells them
    ("[SUFFIX]", Hole.SUFFIX, "[PREFIX]", Hole.PREFIX),
)
"""These are the formats of Qwen and CodeGemma, StarCoder and Granite, SantaCoder, DeepSeek,
CodeLlama (twice) and Codestral, each from its model's documentation."""


_FILES: Final = (
    ("<|repo_name|>", "<|file_sep|>"),
    ("<repo_name>", "<file_sep>"),
    ("<reponame>", "<filename>"),
    ("", "<|file_separator|>"),
)
"""Names of a repository and a file follow these: in Qwen, StarCoder2, Granite, CodeGemma."""

_REPOSITORY: Final = "repository\n"
_FILE: Final = "file\n"
"""These stand for a repository's and a file's name if the client names neither."""

Encode = Callable[[str], Sequence[int]]
"""An Encode returns the tokens of a text in which markers stay text."""


@dataclass(frozen=True, slots=True)
class InfillFormat:
    """An InfillFormat is the form in which one model takes infill prompts."""

    parts: Sequence[int | Hole]
    """The format has these markers as token ids, with the holes between them."""

    repository: int | None
    file: int | None

    def prompt(self, prefix: str, suffix: str, encode: Encode) -> list[int]:
        """Return the prompt for the text between two texts."""
        texts = {Hole.PREFIX: prefix, Hole.SUFFIX: suffix}
        tokens: list[int] = []
        for part in self.parts:
            tokens += encode(texts[part]) if isinstance(part, Hole) else [part]
        return tokens

    def before(
        self, snippets: Sequence[Mapping[str, str]], max_tokens: int, encode: Encode
    ) -> list[int]:
        """Return tokens that show snippets of other files, and precede the prompt: as many of
        the last ones as fit into max_tokens. snippets: objects with `filename` and `text`."""
        head = [] if self.repository is None else [self.repository, *encode(_REPOSITORY)]
        tail = [] if self.file is None else [self.file, *encode(_FILE)]
        room, shown = max_tokens - len(head) - len(tail), list[list[int]]()
        for snippet in reversed(snippets):
            tokens = self._snippet(f"{snippet['filename']}\n", snippet["text"], encode)
            if (room := room - len(tokens)) < 0:
                break
            shown.insert(0, tokens)
        return [*head, *(token for each in shown for token in each), *tail] if shown else []

    def _snippet(self, name: str, text: str, encode: Encode) -> list[int]:
        if self.file is None:
            return [*encode(f"{name}{text}\n\n")]
        return [self.file, *encode(name), *encode(text)]


def infill_format(vocabulary: Vocabulary) -> InfillFormat | None:
    """Return the infill format of a vocabulary's model; None if it has none."""
    spelt = (part for each in _FORMATS for part in each if isinstance(part, str))
    wanted = {each.encode() for each in (*spelt, *chain.from_iterable(_FILES))}
    ids = {piece: token for token, piece in enumerate(vocabulary.pieces) if piece in wanted}
    repository, file = next(
        (
            (ids.get(repo.encode()), ids[sep.encode()])
            for repo, sep in _FILES
            if sep.encode() in ids
        ),
        (None, None),
    )
    for each in _FORMATS:
        if all(isinstance(part, Hole) or part.encode() in ids for part in each):
            parts = [part if isinstance(part, Hole) else ids[part.encode()] for part in each]
            return InfillFormat(parts, repository, file)
    return None
