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
    """With draft tokens waiting, a pass begins so long after the one before, by its rows."""

    drafting_s: dict[int, float]
    """The same while the draft model works: on one machine both ends share the memory."""

    draft_s: dict[int, float]
    """While the target works, a step of the draft model takes so long, by the tokens it
    reads."""

    alone_s: dict[int, float]
    """The same while the target is idle."""

    first_s: float
    """The first token of a prompt that was asked before comes after this time and its tokens'
    share."""

    prefill_s: float
    """Each token of such a prompt adds so much."""

    stack_s: float
    """Software adds so much to a round trip: from a Commit to a pass over the answer to it."""

    message_s: float
    """Each message that is received adds so much to the pass that runs."""
