"""Made-up answers, for tests of what is computed from them."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np

from picospec.bench.data.results import Answer, Host, Results, Settings, rows
from picospec.bench.traces import Trace
from picospec.speculation.messages import TokenId

ANSWER = Answer(
    "cloud", "code", "p", 0, 10.0, None, 0.0, "same", tokens=10, first_share=0.0, seconds=1.0,
    ttft_ms=50.0, gaps_ms=[10.0, 20.0, 30.0], drafted=8, accepted=5, target_passes=5,
    bytes_up=60, bytes_down=40, edge_cpu_s=0.1,
    stolen_s=0.003, draft_model_tokens=9,
)  # fmt: skip
"""It has ten tokens, in five passes."""


def answer(arm: str, seconds: float, **fields: object) -> Answer:
    """Return an answer that is as ANSWER, but for these fields."""
    return msgspec.structs.replace(ANSWER, arm=arm, seconds=seconds, **fields)


def right_trace(
    prompt: tuple[TokenId, ...],
    tokens: Sequence[TokenId],
    *,
    family: str = "code",
    name: str = "code/0",
    temperature: float = 0.0,
) -> Trace:
    """Return the trace of an answer whose every draft token is the target's."""
    text, logits = np.array(tokens, np.int32), np.zeros((len(tokens), 1), np.float32)
    never = np.full((len(tokens), 1), -1, np.int32)
    return Trace(
        family, name, temperature, 7, np.array(prompt, np.int32), text, text[:, None], logits,
        never, logits,
    )  # fmt: skip


def results(*answers: Answer) -> Results:
    host = Host("a processor", 2, 8.0, "Linux", "3.11", 0.0)
    models = {"target": "big", "draft": "small"}
    link: dict[str, float | None] = {"jitter_ms": 0.0}
    settings: Settings = {"tokens": 10, "repeats": 1}
    return Results(host, "abc123", models, link, settings, rows(answers), list(answers))
