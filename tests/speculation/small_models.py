"""Small models have few tokens; `plain` is the text that one of them generates alone."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from picospec.speculation.distributions import Distribution, distribution, noise_index
from picospec.speculation.messages import Open, Sampling, TokenId

Model = Callable[[tuple[TokenId, ...]], Distribution]
"""Context to distribution."""

SIZE = 7
STOP = 6
PROMPT = (3, 1, 2)
ALMOST_1 = 1 - 2**-53


def model(number: int) -> Model:
    """A model whose distribution depends on the last two tokens; every third is very sure."""
    evenness = 0.05 if number % 3 == 0 else 0.5
    table = np.random.default_rng(number).dirichlet([evenness] * SIZE, (SIZE, SIZE))

    def after(context: tuple[TokenId, ...]) -> Distribution:
        p = table[context[-2], context[-1]]
        return Distribution(np.flatnonzero(p), p[p > 0.0])

    return after


def opening(**changes: object) -> Open:
    defaults = {"seed": 5, "max_tokens": 12, "stop_tokens": (STOP,)}
    return Open("m", "v", PROMPT, Sampling(), **{**defaults, **changes})  # type: ignore[arg-type]


def plain(target: Model, request: Open) -> list[TokenId]:
    """The text that the target alone generates for the request's seed."""
    text: list[TokenId] = []
    while len(text) < request.max_tokens and not (text and text[-1] in request.stop_tokens):
        at = noise_index(len(request.prompt), len(text))
        text.append(target((*request.prompt, *text)).picked(request.seed, at))
    return text


def distribution_of(*p: float) -> Distribution:
    kept = np.flatnonzero(p)
    return Distribution(kept, np.array(p)[kept] / np.sum(p))


def random_distribution(seed: int, size: int, spread: float = 1.5) -> Distribution:
    values = np.random.default_rng(seed).normal(0, spread, size)
    return distribution(values.astype(np.float32), Sampling())
