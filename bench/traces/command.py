"""`picospec bench record`: traces of real prompts, for the simulator."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from bench.run.prompts import Prompt, sampling
from bench.traces.record import Question, open_pair, record
from gateway.ports import Message
from models.llama import Model
from models.tokenizer import GgufTokenizer


@dataclass(frozen=True, slots=True)
class Recording:
    target: Path
    draft: Path
    prompts: Sequence[Prompt]
    temperatures: Sequence[float]
    tokens: int
    seed: int
    context_tokens: int = 4096


def traces(recording: Recording, folder: Path) -> Iterator[Path]:
    """Record one prompt after another at each temperature; yield the files.

    Raises ModelError, OSError, or ValueError for a prompt that the template refuses.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with closing(Model(recording.target)) as target, closing(Model(recording.draft)) as draft:
        contexts = open_pair(target, draft, recording.context_tokens)
        tokenizer = GgufTokenizer(target)
        with closing(contexts[0]), closing(contexts[1]):
            for prompt in recording.prompts:
                tokens = tokenizer.chat([Message("user", prompt.prompt)])
                for temperature in recording.temperatures:
                    question = _question(recording, prompt, tokens, temperature)
                    yield record(*contexts, question).save(folder)


def _question(
    recording: Recording, prompt: Prompt, tokens: Sequence[int], temperature: float
) -> Question:
    drawn = sampling(temperature)
    return Question(prompt.family, prompt.id, tokens, drawn, recording.seed, recording.tokens)
