"""How much faster than the target alone an answer should be, by a formula.

Draft tokens are accepted with probability a, so that 1/(1-a) tokens lie between two rejections.
After one, the first draft token of the new chain arrives a round trip and a draft step later;
until then the target generates by itself, a token a pass, and the chain has that start to catch
up with. From then on tokens come as fast as they are drafted. Or the target waits, and judges
all of a chain in one pass; the better of the two counts.

The simulator knows more: prompt lookup, reading ahead, and that the edge may go on from the
target's own tokens. The formula is below its speed-ups, by 20 % in the mean over the table of
docs/performance.md, which tests/cli/doctor/test_prediction.py compares.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

ACCEPTANCE: Final[Mapping[str, float]] = {"code": 0.992, "maths": 0.904, "chat": 0.666}
"""How often a draft token is right, by the kind of text: a prior, from the Qwen pair. It was
measured with `picospec bench record`."""

MAX_DRAFTS: Final = 32
"""Draft tokens of a session that one pass judges."""


def speed_up(acceptance: float, *, pass_s: float, draft_s: float, rtt_s: float) -> float:
    """Return how many times as fast as the target alone a long answer comes.

    pass_s: the target's time for a token. draft_s: the draft model's.
    """
    run = 1 / (1 - acceptance)
    waiting_s = rtt_s + draft_s * max(run - 1, 1) + pass_s
    token_s = max(draft_s, pass_s / MAX_DRAFTS)
    alone = run
    if token_s < pass_s:
        start = (rtt_s + draft_s) / pass_s / (1 - token_s / pass_s)
        alone = (1 - acceptance**start) / (1 - acceptance)
    streaming_s = alone * pass_s + (run - alone) * token_s
    return run * pass_s / min(waiting_s, streaming_s)
