"""Traces of the answers that a run's target gave.

The answers are there, so only the draft model runs: seconds a prompt. Text is split into tokens
anew; where that gives other tokens than the target generated, the text is the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from bench.data.prompts import Prompt
from bench.data.results import Answer, Results
from bench.traces.record import CONTEXT_TOKENS, Subject, trace
from gateway.ports import Message
from models.llama import Context, Model
from models.tokenizer import GgufTokenizer


@dataclass(frozen=True, slots=True)
class Replies:
    results: Results
    prompts: dict[str, Prompt]
    target: Path
    """Any file with the target's vocabulary and chat template; its weights are not read."""

    draft: Path
    context_tokens: int = CONTEXT_TOKENS

    @property
    def wanted(self) -> list[Answer]:
        """Cloud's first answer to each prompt at each temperature."""
        found: dict[tuple[str, float], Answer] = {}
        for answer in self.results.answers:
            if answer.arm == "cloud" and answer.prompt in self.prompts:
                found.setdefault((answer.prompt, answer.temperature), answer)
        return list(found.values())

    @property
    def total(self) -> int:
        return len(self.wanted)

    def traces(self, folder: Path) -> Iterator[Path]:
        """Record one answer after another; yield the files. Raises ModelError or OSError."""
        with (
            closing(Model(self.target, vocabulary_only=True)) as target,
            closing(Model(self.draft)) as draft,
            closing(Context(draft, self.context_tokens)) as context,
        ):
            tokenizer = GgufTokenizer(target)
            for answer in self.wanted:
                prompt = tokenizer.chat([Message("user", self.prompts[answer.prompt].prompt)])
                seed = int(str(self.results.settings["seed"])) + answer.repeat
                subject = Subject(
                    answer.family, answer.prompt, prompt, answer.temperature, seed
                )
                tokens = _tokens(answer, tokenizer, target.vocabulary.eos)
                yield trace(context, subject, tokens).save(folder)


def _tokens(answer: Answer, tokenizer: GgufTokenizer, eos: int) -> list[int]:
    """Return the tokens of the text, and of its end if the answer has one."""
    tokens = tokenizer.encode(answer.text)
    return [*tokens, eos] if answer.tokens == len(tokens) + 1 else tokens
