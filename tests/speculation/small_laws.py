"""Laws over a few tokens."""

from __future__ import annotations

import numpy as np

from speculation.laws import Law, law
from speculation.messages import Sampling

ALMOST_1 = 1 - 2**-53


def law_of(*p: float) -> Law:
    kept = np.flatnonzero(p)
    return Law(kept, np.array(p)[kept] / np.sum(p))


def random_law(seed: int, size: int, spread: float = 1.5) -> Law:
    values = np.random.default_rng(seed).normal(0, spread, size)
    return law(values.astype(np.float32), Sampling())
