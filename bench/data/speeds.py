"""How fast both ends of a host are, measured: what the simulator must know to predict a run."""

from __future__ import annotations

import msgspec

from picospec.bench.data.host import Host


class Speeds(msgspec.Struct, frozen=True):
    """All times are in seconds; the modules of bench.calibrate say how they were taken."""

    host: Host
    commit: str
    models: dict[str, str]
    pass_s: dict[int, float]
    """Time from the start of a pass to that of the next, by rows, with draft tokens waiting."""

    drafting_s: dict[int, float]
    """The same while the draft model works: on one machine both ends share the memory."""

    draft_s: dict[int, float]
    """Time of a draft model's step while the target works, by the tokens it reads."""

    alone_s: dict[int, float]
    """The same while the target is idle."""

    first_s: float
    """Time from request to first token, for a prompt asked before, less its tokens' share."""

    prefill_s: float
    """What each token of such a prompt adds."""

    stack_s: float
    """What software adds to a round trip: from a Commit to a pass over the answer to it."""

    message_s: float
    """What each message received adds to the pass that runs."""
