"""What is asked of vLLM itself and of sessions, which must answer the same tokens."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Any, Final

from picospec.speculation.messages import ModelFacts, Open, Sampling
from tests.verifier.vllm_target.scripted import PERSON, with_extras
from tests.verifier.vllm_target.v2.tiny import EOS, TOKENS

MAX_TOKENS: Final = 32
PENALTIES: Final = {
    "repetition_penalty": 1.3,
    "frequency_penalty": 0.5,
    "presence_penalty": 0.4,
}
CASES: Final[dict[str, dict[str, Any]]] = {
    "T=0": {"temperature": 0.0},
    "T=1": {},
    "T=.8, top-p": {"temperature": 0.8, "top_p": 0.95},
    "top-k": {"top_k": 40},
    "top-k, top-p, min-p": {"temperature": 0.7, "top_k": 50, "top_p": 0.9, "min_p": 0.01},
    "min-p": {"min_p": 0.05},
    "penalties": PENALTIES,
    "penalties, T=0": {"temperature": 0.0, **PENALTIES},
    "bias": {"logit_bias": {7: 4.0, 9: -50.0, 30: 2.0}, "presence_penalty": 0.4},
    "min tokens": {"min_tokens": 20, "stop_token_ids": list(range(2, 80))},
    "schema": {"structured_outputs": {"json": PERSON}, "stop_token_ids": [EOS]},
    "schema, T=0": {
        "temperature": 0.0,
        "structured_outputs": {"json": PERSON},
        "stop_token_ids": [EOS],
        "presence_penalty": 1.0,
    },
}
"""Keywords of vLLM's SamplingParams, which are also the names of the edge's settings."""


@dataclass(frozen=True)
class Text:
    """What vLLM itself says."""

    tokens: list[int]
    logprobs: list[float]


def prompts() -> list[list[int]]:
    """Return a short one, one whose answer needs a second block of KV, and one with two."""
    random = Random(1)
    return [[random.randrange(2, TOKENS) for _ in range(length)] for length in (5, 110, 190)]


def seed_of(number: int) -> int:
    """Return the seed for a prompt: a small one, a large one, and one of all 64 bits."""
    return (42, 2**62 + 5, 2**64 - 5)[number]


def keywords(name: str, number: int, **more: Any) -> dict[str, Any]:
    """Return the keywords of SamplingParams. vLLM's seeds are signed."""
    seed = seed_of(number)
    signed = seed - 2**64 if seed >= 2**63 else seed
    asked = {"max_tokens": MAX_TOKENS, "seed": signed, "ignore_eos": True, "detokenize": False}
    return asked | CASES[name] | more


def session(facts: ModelFacts, name: str, number: int, **fields: Any) -> Open:
    """Return the session that asks for the same."""
    settings = dict(CASES[name])
    stop = tuple(settings.pop("stop_token_ids", ()))
    shape = {k: settings.pop(k) for k in Sampling.__struct_fields__ if k in settings}
    asked = {"seed": seed_of(number), "max_tokens": MAX_TOKENS, "stop_tokens": stop} | fields
    sampling = with_extras(Sampling(**shape), **settings)
    return Open(facts.model, facts.vocabulary, tuple(prompts()[number]), sampling, **asked)
