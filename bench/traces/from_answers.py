"""`picospec bench record --answers`: traces of what a run's target said.

The answers are there, so only the draft model is asked: seconds a prompt. Text is split into
tokens anew; where that gives others than the target said, the text is the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench.report.results import Answer, Results
from bench.run.prompts import Prompt, sampling
from bench.traces.files import Trace
from bench.traces.record import read_draft, shortened
from gateway.ports import Message
from models.llama import Context, Model
from models.tokenizer import GgufTokenizer
from speculation.sampling.draft_sampler import coupled


@dataclass(frozen=True, slots=True)
class Replies:
    """target: any file of its vocabulary and chat template; its weights are not read."""

    results: Results
    prompts: dict[str, Prompt]
    target: Path
    draft: Path
    context_tokens: int = 4096

    @property
    def wanted(self) -> list[Answer]:
        """Cloud's first answer to each prompt at each temperature."""
        found: dict[tuple[str, float], Answer] = {}
        for answer in self.results.answers:
            if answer.arm == "cloud" and answer.prompt in self.prompts:
                found.setdefault((answer.prompt, answer.temperature), answer)
        return list(found.values())

    def traces(self, folder: Path) -> Iterator[Path]:
        """Record one after another; yield the files. Raises ModelError or OSError."""
        folder.mkdir(parents=True, exist_ok=True)
        with (
            closing(Model(self.target, vocabulary_only=True)) as target,
            closing(Model(self.draft)) as draft,
            closing(Context(draft, self.context_tokens)) as context,
        ):
            tokenizer = GgufTokenizer(target)
            for answer in self.wanted:
                message = Message("user", self.prompts[answer.prompt].prompt)
                tokens = _tokens(answer, tokenizer, target.vocabulary.eos)
                yield self._trace(answer, tokenizer.chat([message]), tokens, context).save(
                    folder
                )

    def _trace(
        self, answer: Answer, prompt: list[int], tokens: list[int], draft: Context
    ) -> Trace:
        seed = int(str(self.results.settings["seed"])) + answer.repeat
        pick = coupled(sampling(answer.temperature), seed, len(prompt))
        read = read_draft(draft, prompt, tokens, pick)
        said = np.array(tokens, np.int32)
        return Trace(
            answer.family,
            answer.prompt,
            answer.temperature,
            seed,
            np.array(prompt, np.int32),
            said,
            said[:, None],
            np.zeros((len(said), 1), np.float32),
            *shortened(read.logits),
            read.astray_tokens,
            read.astray_confidences,
            np.full(len(said), np.nan, np.float32),
        )


def _tokens(answer: Answer, tokenizer: GgufTokenizer, eos: int) -> list[int]:
    """Return the tokens of the text, and of its end if it came to one."""
    tokens = tokenizer.encode(answer.text)
    return [*tokens, eos] if answer.tokens == len(tokens) + 1 else tokens
