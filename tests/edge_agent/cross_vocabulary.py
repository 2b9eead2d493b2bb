"""The vocabularies of SmolLM2 and Qwen2.5-Coder, and a draft model that writes a given text."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from functools import cache
from random import Random
from typing import Literal

import numpy as np
from hypothesis import strategies as st

from edge_agent.draft.token_mapping import Translation
from local_models.llama_cpp.model import Model
from local_models.llama_cpp.segments import ContextLimits, Segment
from local_models.store import open_store
from local_models.tokenizer_file import tokenizer_file
from local_models.vocabulary import Vocabulary
from speculation.distributions import Logits

Name = Literal["smollm2", "qwen"]
_FILES = {"smollm2": "smollm2-135m-q4_0", "qwen": "qwen2.5-coder-0.5b-q4_0"}
PAIRS: list[tuple[Name, Name]] = [("smollm2", "qwen"), ("qwen", "smollm2")]
"""Target and draft model."""

_WORDS = [
    "the", " quick", "return", "    ", "\n", "\n\n", "):", ":\n", " (", "x", "_y", " = ", "0.5",
    ",", "'s", "``", "```python\n", "café", " 中文", "字", "🙂", "é", "1234", " --", "\t", ".",
    "Pseudonymous",
]  # fmt: skip
TEXTS = st.lists(st.sampled_from(_WORDS) | st.text(max_size=6), max_size=20).map("".join)


@cache
def model(name: Name) -> Model:
    """Return a model without weights."""
    store = open_store(os.environ)
    store.pull(_FILES[name], lambda what, done, total: None)
    return Model(store.find(_FILES[name], "draft").path, vocabulary_only=True)


@cache
def translation(target: Name, draft: Name) -> Translation:
    return Translation(tokenizer_file(model(target).path).open(), model(draft))


class Typist:
    """A Context whose model writes `text` in a random split into the tokens of `translation`'s
    draft model, and goes on from any beginning of it. It ends the turn behind the text."""

    def __init__(self, translation: Translation, prompt: Sequence[int], text: bytes) -> None:
        self.limits = ContextLimits(2, 4096, 64, len(translation.draft.vocabulary.pieces), 64)
        self.text = text
        self.passes = 0
        self.longest = False
        """Whether it writes the longest tokens, in place of a random split."""

        self._draft = translation.draft
        self._end = translation.draft.vocabulary.eos or 0
        self._prompt = list(prompt)
        self._held: list[int] = []
        self._rows: list[Logits] = []
        self._random = Random(text)

    def decode(self, segments: Sequence[Segment]) -> None:
        (segment,) = segments
        self._held = [*self._held[: segment.start], *segment.tokens]
        self.passes += 1
        wanted = segment.logits or 0
        self._rows = [self._row(len(self._held) - n) for n in reversed(range(wanted))]

    def logits(self, index: int) -> Logits:
        return self._rows[index]

    def truncate(self, sequence: int, length: int) -> None:
        del self._held[length:]

    def copy(self, source: int, target: int) -> None:
        raise NotImplementedError("its prompts are short")

    def close(self) -> None:
        pass

    def _row(self, length: int) -> Logits:
        """Return logits that prefer every token which the rest of the text begins with."""
        row = np.zeros(self.limits.vocabulary_size, np.float32)
        spelt = self._draft.bytes_of(self._held[len(self._prompt) : length])
        assert self._held[: len(self._prompt)] == self._prompt
        assert self.text.startswith(spelt)
        rest = self.text[len(spelt) :]
        if not rest:
            row[self._end] = 50.0
        for size in range(1, min(len(rest), 64) + 1):
            if (token := self._draft._ids.get(rest[:size])) is not None:
                row[token] = 20.0 + (size if self.longest else 10.0 * self._random.random())
        return row


# A tokenizer of a few pieces that takes the longest piece, as often as it can.


class WordEncoder:
    """local_models.tokenizer.Encoder. The first of the special tokens ends a turn."""

    raw_beginning: tuple[int, ...] = ()
    chat_beginning: tuple[int, ...] = ()

    def __init__(self, pieces: Sequence[bytes], special: Collection[int]) -> None:
        end = min(special)
        self.vocabulary = Vocabulary(tuple(pieces), frozenset(special), frozenset({end}), end)

    def tokenize(self, text: str, special: bool) -> list[int]:
        pieces = self.vocabulary.pieces
        tokens, rest = list[int](), text.encode()
        while rest:
            fit = [t for t, piece in enumerate(pieces) if rest.startswith(piece)]
            if not fit:
                break
            tokens.append(max(fit, key=lambda token: len(pieces[token])))
            rest = rest[len(pieces[tokens[-1]]) :]
        return tokens
