"""Distributions over a few tokens."""

from __future__ import annotations

import numpy as np

from picospec.speculation.protocol.messages import Sampling
from picospec.speculation.sampling.distributions import Distribution, distribution

ALMOST_1 = 1 - 2**-53


def distribution_of(*p: float) -> Distribution:
    kept = np.flatnonzero(p)
    return Distribution(kept, np.array(p)[kept] / np.sum(p))


def random_distribution(seed: int, size: int, spread: float = 1.5) -> Distribution:
    values = np.random.default_rng(seed).normal(0, spread, size)
    return distribution(values.astype(np.float32), Sampling())
