"""The log-probabilities that clients may ask for: of the model itself, without any setting."""

from __future__ import annotations

import numpy as np

from picospec.speculation.protocol.messages import TokenId, TokenLogprob
from picospec.speculation.sampling.distributions import Logits, top


def logprob_of(logits: Logits, token: TokenId, most: int) -> TokenLogprob:
    """Return log softmax(logits) of a token and of the `most` likeliest. logits: float32[V]."""
    peak = logits.max()
    norm = float(peak) + float(np.log(np.exp(logits - peak).sum(dtype=np.float64)))
    likeliest = top(logits, most).tolist() if most else []
    return TokenLogprob(
        float(logits[token]) - norm, tuple((t, float(logits[t]) - norm) for t in likeliest)
    )
