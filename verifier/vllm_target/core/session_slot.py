"""A session inside vLLM's core: the verifying machine, its pacing, and what it has said.

A seat's committed tokens may be one ahead of vLLM's: a forced token is committed when it
arrives, and vLLM learns of it in the next step, as a draft accepted whatever its p. The seat
*owes* it until then.

Everything said is kept as numbered frames until the session is forgotten: vLLM merges outputs
for a slow reader and keeps only the last of each side field, so an output carries the latest
frames, and whoever finds a gap asks for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from copy import copy
from dataclasses import replace
from itertools import islice
from typing import Final, NamedTuple

from speculation.protocol import wire
from speculation.protocol.errors import RemoteProtocolError
from speculation.protocol.messages import Down, Pushed, TokenId, TokenLogprob
from speculation.sampling.judging import Judgement
from speculation.sampling.noise import place
from speculation.verifying.arrivals import Arrivals, receive
from speculation.verifying.pass_policy import hold_s
from speculation.verifying.row_allocation import PassLatency
from speculation.verifying.session import VerifyingSession
from verifier.vllm_target.admission import Admission
from verifier.vllm_target.verify_request import VerifyRequest

RECENT_FRAMES: Final = 16
"""Carried by each output; four would do for a reader that is never a step behind."""


class OutgoingFrame(NamedTuple):
    """One frame, and what the pass that brought it about took. A tuple: vLLM carries those."""

    frame: bytes
    judged: int = 0
    """Draft tokens judged."""

    rows: int = 0
    """Of the whole step, on one frame of the step; else 0."""


class Seat:
    def __init__(self, admission: Admission, now: float) -> None:
        self.admission = admission
        self.machine = VerifyingSession(
            admission.request,
            admission.limits,
            vocabulary_size=admission.vocabulary_size,
        )
        self.frames: list[OutgoingFrame] = []
        self.complaint: str | None = None
        """What the edge did that no honest edge does; the session is over."""

        self._arrivals = Arrivals()
        self._since = now

    @property
    def separate(self) -> bool:
        return self.machine.request.judge == "separate"

    @property
    def recent(self) -> tuple[int, list[OutgoingFrame]]:
        """The latest frames, and the number of the first of them."""
        first = max(0, len(self.frames) - RECENT_FRAMES)
        return first, self.frames[first:]

    # --- up

    def receive(self, frames: bytes, arrived: float, u: Iterator[float]) -> bool:
        """Take in Drafts and Redraws; tell whether anything was said at once.

        Raises RemoteProtocolError; what came before the offending message stays.
        """
        before = len(self.frames)
        for message in wire.Decoder().feed(frames):
            if not isinstance(message, Pushed):
                raise RemoteProtocolError(f"{type(message).__name__}: not from an edge")
            self._say(receive(self.machine, self._arrivals, message, u, arrived=arrived))
        return len(self.frames) > before

    # --- passes

    def owed(self, said: int) -> TokenId | None:
        """Return the committed token that vLLM, with `said` tokens, does not know yet."""
        return self.machine.committed[said] if said < len(self.machine.committed) else None

    def hold_s(self, now: float, times: PassLatency) -> float:
        """Return how long the session should wait for drafts; 0: its pass may start."""
        if self.machine.rejection is not None:
            return float("inf")
        most = self.admission.limits.max_verify
        return hold_s(self.machine, self._arrivals, times, most, now)

    def rehearse(self, most: int) -> tuple[TokenId, ...]:
        """Return the drafts a pass would take now, without beginning it."""
        if self.machine.rejection is not None or self.machine.finished:
            return ()
        return copy(self.machine).begin(most).draft

    def begin(self, said: int, injected: int, u: Iterator[float]) -> VerifyRequest:
        """Begin the pass of a step that samples; the step judges `injected` of our tokens.

        While a replacement is awaited, or vLLM has yet to be told a token and no row is there
        to follow it, no pass begins and the order is silent.
        """
        owed = self.owed(said)
        order = VerifyRequest(
            self.machine.request.sampling,
            self.machine.request.judge,
            self.machine.request.seed,
            place(self.admission.prompt_tokens, len(self.machine.committed)),
            bias=self.admission.bias,
            forced=owed,
        )
        if self.machine.rejection is not None or (owed is not None and not injected):
            return replace(order, silent=True)
        begun = self.machine.begin(injected - (owed is not None), exact=True)
        chance = tuple(islice(u, len(begun.draft) + 1)) if self.separate else ()
        return replace(order, draft=begun.draft, q=begun.q, u=chance)

    def resolve(
        self,
        judgement: Judgement,
        *,
        started: float,
        now: float,
        rows: int,
        logprobs: Sequence[TokenLogprob] | None,
        u: Iterator[float],
    ) -> None:
        """Apply the outcome of the pass begun; what it says is added to `frames`."""
        judged = -self.machine.totals.judged
        down = self.machine.resolve(
            judgement,
            queue_s=max(0.0, started - self._since),
            pass_s=now - started,
            logprobs=logprobs,
            u=u,
        )
        self._say(down, judged + self.machine.totals.judged, rows)
        self._since = now
        self._arrivals.committed(self.machine, now)

    def _say(self, messages: Iterable[Down], judged: int = 0, rows: int = 0) -> None:
        for message in messages:
            self.frames.append(OutgoingFrame(wire.encode(message), judged, rows))
            judged = rows = 0
