"""A slot keeps a session in vLLM's core: the tokens that vLLM lacks, and the unsent frames.

The committed tokens may be one ahead of vLLM's. A recovered token is committed when the edge
sends it, and vLLM receives it in the next step, as a draft token that is accepted whatever its
probability. Until then this token is *missing* in vLLM.

Frames leave with the next output of vLLM's request.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from speculation.logits import Adjustment
from speculation.messages import Down
from speculation.model_facts import TokenId
from speculation.verify_session import Pass, VerifyingSession
from verifier.vllm_target.ipc_messages import Admission
from verifier.vllm_target.packing import packed
from verifier.vllm_target.verify_request import VerifyRequest


class OutgoingFrame(NamedTuple):
    """A frame is a packed message that has the cost of its pass with it. It is a tuple because
    vLLM carries tuples."""

    frame: bytes
    judged: int = 0
    """The pass judged this many draft tokens."""

    rows: int = 0
    """The whole step had this many rows; given on one frame of a step, 0 on the others."""


class SessionSlot:
    """Keeps one session. session: the machine's record, which is only read here. prompt: needed
    if the request's settings depend on the text."""

    def __init__(
        self, admission: Admission, session: VerifyingSession, prompt: Sequence[TokenId] = ()
    ) -> None:
        self.admission = admission
        self.session = session
        self._initial_output = list(session.request.committed)
        self._adjustment = Adjustment.first(
            admission.settings, prompt, admission.request.stop_tokens
        )
        self.proposed: list[TokenId] = []
        """vLLM's own speculation proposed this last; -1 for a token that only the worker knows.
        The machine knows how many of the tokens still follow the text."""

        self.frames: list[OutgoingFrame] = []
        """These frames have not been sent."""

        self.error: str | None = None
        """The edge made this protocol error, which ends the session; None without one."""

    @property
    def name(self) -> str:
        return self.admission.session

    @property
    def over(self) -> bool:
        return self.session.finished is not None or self.error is not None

    def missing(self, tokens: int) -> tuple[TokenId, ...]:
        """Return the committed tokens that vLLM does not know: at most one. tokens: the number
        that vLLM knows, including the prompt."""
        known = tokens - self.admission.prompt_tokens
        return tuple(self.session.committed[known : known + 1])

    def take_initial_output(self) -> list[TokenId]:
        """Return, at the first call only, the output tokens that the session began with: vLLM
        counts them as prompt, so its grammar has not read them."""
        tokens, self._initial_output = self._initial_output, []
        return tokens

    def may_begin(self, missing: tuple[TokenId, ...], injected: int) -> bool:
        """Return True if a step that judges `injected` of our tokens begins a pass.

        It does not while the edge owes a token, nor if the step lacks a row after a token that
        vLLM does not know yet, or for a draft token that the pass must have.
        """
        needs_more = bool(missing) or self.session.needs_draft
        return self.session.may_begin and (injected > 0 or not needs_more)

    @property
    def may_run_asynchronously(self) -> bool:
        """True if a step may be planned before the result of the session's last one is known:
        vLLM then draws the session's token as it draws that of a request of its own."""
        request = self.admission.request
        by_noise = self.admission.drawn_by_vllm and request.judge == "coupled"
        return by_noise and request.fill != "never"

    def fill_in(self, start: int) -> VerifyRequest:
        """Return the session's part of a step that has no draft token, and whose pass begins
        when it has run. start: the position of the token that it generates."""
        rule = self.session.fill_in_rule(start)
        return VerifyRequest(self.session.request.sampling, rule)

    def verify_request(self, judged: Pass | None, missing: Sequence[TokenId]) -> VerifyRequest:
        """Return the session's part of a step. judged: None if no pass has begun."""
        sampling = self.session.request.sampling
        if judged is None:
            return VerifyRequest(sampling, None)
        if self._adjustment is not None:
            read = slice(self._adjustment.position, judged.start - len(missing))
            self._adjustment = self._adjustment.after(self.session.committed[read])
        draft = *missing, *judged.draft
        return VerifyRequest(sampling, judged.rule, draft, len(missing), self._adjustment)

    def send(self, messages: Iterable[Down], *, judged: int = 0, rows: int = 0) -> None:
        """Append messages to the frames. judged, rows: counts of the pass that caused them."""
        for message in messages:
            self.frames.append(OutgoingFrame(packed(message), judged, rows))
            judged = rows = 0
