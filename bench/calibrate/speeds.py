"""How fast both ends of a run are, measured: what the simulator must know to predict it."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from bench.run.host import Host
from bench.simulator.clock import Curve
from bench.simulator.hosts import Hosts


class Speeds(msgspec.Struct, frozen=True):
    """All times in seconds; bench.calibrate.pass_timing and bench.calibrate.draft_timing say how they were taken."""

    host: Host
    commit: str
    models: dict[str, str]
    pass_s: dict[int, float]
    """From the start of one pass to that of the next, over rows, with drafts always waiting."""

    drafting_s: dict[int, float]
    """The same while the draft model works: on one machine both want its memory."""

    draft_s: dict[int, float]
    """A step of the draft model while the target works, over the tokens it reads."""

    alone_s: dict[int, float]
    """The same while the target rests."""

    first_s: float
    """From asking to the first token, for a prompt asked before, without its tokens' share."""

    prefill_s: float
    """What each token of such a prompt adds."""

    stack_s: float
    """What software adds to a round trip: from a Commit to a pass over the answer to it."""

    message_s: float
    """What each message taken in adds to the pass that runs."""

    @property
    def hosts(self) -> Hosts:
        """The same, as the simulator takes it; the edge has read the prompt before."""
        return Hosts(
            Curve(self.pass_s),
            Curve(self.draft_s),
            drafting_s=Curve(self.drafting_s),
            alone_s=Curve(self.alone_s),
            prefill_s=self.prefill_s,
            first_s=self.first_s,
            stack_s=self.stack_s,
            message_s=self.message_s,
        )

    def save(self, path: Path) -> None:
        """Write the file at once or not at all."""
        partial = path.with_name(path.name + ".partial")
        partial.write_bytes(msgspec.json.format(msgspec.json.encode(self), indent=1))
        os.replace(partial, path)


def load(path: Path) -> Speeds:
    """Read what `save` wrote. Raises OSError, or ValueError that names the file."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Speeds)
    except msgspec.MsgspecError as error:
        raise ValueError(f"{path}: {error}") from None
