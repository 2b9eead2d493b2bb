"""Judges one session's part of a step on the host, by the core's own rules.

Rows are looked at one after another, and none after that of the first rejected draft token. On
a CPU the logits lie where vLLM left them, and numpy ranks them faster than torch does.
"""

from __future__ import annotations

from collections.abc import Callable

from picospec.speculation.judges.judge import Judgement
from picospec.speculation.sampling.distributions import Distribution, Logits, distribution
from picospec.verifier.vllm_target.verify_request import VerifyRequest


def judge(request: VerifyRequest, logits: Callable[[int], Logits]) -> Judgement:
    """Return the outcome of a session's step, or nothing where no pass has begun.

    logits(i): float32[V] of the i-th row that vLLM computed for the session, after the masks of
    grammars.
    """

    def row(i: int) -> Distribution:
        found = logits(i)
        if request.adjustment is not None:
            found = request.adjustment.after(request.draft[:i]).apply(found)
        return distribution(found, request.sampling)

    return request.judge(row)
