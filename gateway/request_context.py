"""A RequestContext records whose a request is, its tokens and times, its outcome, and what it
takes of the tenant's limits.

The counts, in a Usage, are for the request's log line, metrics, span and answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import reduce
from itertools import zip_longest
from typing import Final

from starlette.requests import HTTPConnection

from gateway.errors import OPENAI, ApiError, ClientGone, EngineFault, Overloaded, Shape
from gateway.log_limits import shown
from gateway.metrics import Metrics, ModelMetrics
from gateway.output.detokenise import TextDelta
from gateway.ports import Statistics
from gateway.tenant_limits import Tenant
from gateway.tracing import NO_SPAN, Fact, Span
from speculation.messages import Totals

Clock = Callable[[], float]
"""Returns the time of a monotonic clock, in seconds."""


@dataclass(slots=True)
class TokenTimes:
    """Says when the tokens of a request came, which started at `started_s` of its clock."""

    clock: Clock
    started_s: float
    first_s: float | None = None
    """The first token was generated this many seconds after the start of the request."""

    _last_s: dict[int, float] = field(default_factory=dict)  # by the index of the choice

    @property
    def elapsed_s(self) -> float:
        return self.clock() - self.started_s

    def observe(self, series: ModelMetrics, index: int, tokens: int) -> None:
        """Note that choice `index` has generated so many tokens now."""
        now_s = self.elapsed_s
        if self.first_s is None:
            self.first_s = now_s
            series.first_token_s.observe(now_s)
        last_s = self._last_s.get(index)
        self._last_s[index] = now_s
        if last_s is not None:
            gap_s = (now_s - last_s) / tokens
            for _ in range(tokens):
                series.token_gap_s.observe(gap_s)


@dataclass(slots=True)
class Usage:
    """Counts the tokens of one request. Each endpoint writes its own view."""

    metrics: Metrics
    times: TokenTimes
    prompt_tokens: int = 0
    choices_of_prompt: int = 1
    """This many consecutive choices have the same prompt."""

    completion_tokens: int = 0
    reasoning_tokens: int = 0
    series: ModelMetrics | None = None
    """The metrics of the model that answers; None until one is known to."""

    endings: list[str] = field(default_factory=list)
    """The reasons for which choices have ended."""

    statistics: dict[int, Statistics] = field(default_factory=dict)
    """Maps the index of each choice to the choice's latest statistics."""

    _runs: bool = False  # True while the gauge of running requests counts this one

    def serve(self, model: str) -> ModelMetrics:
        """Count for this model from now on; "" for one of an unknown name."""
        self.series = series = self.metrics.of(model)
        return series

    def run(self, model: str) -> None:
        """Count the request as one that runs, for this model."""
        self.stop_running()
        self.serve(model).running.inc()
        self._runs = True

    def stop_running(self) -> None:
        if self._runs and self.series is not None:
            self.series.running.dec()
            self._runs = False

    def count(self, index: int, delta: TextDelta) -> None:
        """Count what choice `index` generated."""
        series = self.series or self.serve("")
        if delta.statistics is not None:
            self.statistics[index] = delta.statistics
        if delta.parsed is not None:
            self.reasoning_tokens += delta.parsed.reasoning_tokens
        if delta.tokens:
            self.completion_tokens += delta.tokens
            series.generation_tokens.inc(delta.tokens)
            self.times.observe(series, index, delta.tokens)
        if delta.finish is not None:
            self.endings.append(delta.finish)
            series.ended(delta.finish)

    def total(self) -> Statistics:
        """Add up the statistics of all choices; cached tokens count once for each prompt."""
        parts, each = self.statistics.values(), self.choices_of_prompt
        firsts = (part for i, part in self.statistics.items() if i % each == 0)
        positions = (part.accepted_per_position for part in parts)
        return Statistics(
            totals=reduce(Totals.plus, (part.totals for part in parts), Totals()),
            accepted_per_position=tuple(map(sum, zip_longest(*positions, fillvalue=0))),
            accepted_prediction_tokens=sum(part.accepted_prediction_tokens for part in parts),
            rejected_prediction_tokens=sum(part.rejected_prediction_tokens for part in parts),
            cached_tokens=sum(part.cached_tokens for part in firsts),
        )


MAX_HELD_BYTES: Final = 64 << 20
"""The bodies of a tenant's requests together have at most this many bytes; a single one may
have more. Each is held from its first byte to the end of the answer."""


@dataclass(slots=True)
class RequestOutcome:
    """Whoever answers a request records here what became of it, for its client, the log and
    the metrics."""

    status: int = 0
    """This HTTP status is logged and counted: 499 if the client left, even after a 200."""

    error: str | None = None
    """The client got the error with this code, as a response or as an event in the stream."""

    fault: Exception | None = None
    """This exception is a bug of this service; its traceback is logged."""

    fallback: str | None = None
    """The fallback with this name answered; None: no fallback did."""

    proxied: str | None = None
    """The service with this name was asked for the whole answer; None: none was asked."""

    proxied_for: str = ""
    """The verifier was asked because it alone serves this field of the request."""

    ignored: tuple[str, ...] = ()
    """These fields of the request cannot change the answer and had no effect."""

    field_names: Mapping[str, str] = field(default_factory=dict)
    """Maps the engine's name of a field to the client's, where they differ; errors use the
    client's name."""

    is_session: bool = False
    """The request has opened a session, which counts its own ending."""

    has_unknown_session: bool = False
    """True while the session that the path names is not known to be the tenant's."""

    def failed(self, raised: Exception) -> ApiError:
        """Record what was raised, and return the error that the client gets."""
        if not isinstance(raised, ApiError):
            self.fault = raised
            raised = EngineFault("internal error")
        raised.name_field(self.field_names)
        self.error = raised.error_code
        return raised

    def cut(self, error: ApiError) -> None:
        """Record the error that ended an answer after its status was sent."""
        self.status, self.error = error.status, error.error_code

    @property
    def is_early(self) -> bool:
        """True if the client left, or got an error; a session counts its own ending."""
        ended = self.error is not None or self.status in (0, ClientGone.status)
        return ended and not self.is_session


@dataclass(slots=True)
class Claim:
    """A Claim is what a request takes of its tenant's limits until it ends."""

    answers: int = 0
    """The tenant began this many answers for this request; they end with the request."""

    held_bytes: int = 0
    """So many bytes of the request's body are held until its end."""

    kept_bytes: int = 0
    """The tenant's kept responses, which the request may continue, have this many bytes."""

    completion_tokens: int = 0
    """The tenant was charged for so many generated tokens."""

    goes_on: asyncio.Task[None] | None = None
    """The answer of this task outlives the request, and the claim ends with it; None: the claim
    ends with the request."""


@dataclass(frozen=True, slots=True)
class RequestContext:
    """Says whose request it is, and where its counts and its outcome are written."""

    request_id: str
    usage: Usage
    tenant: Tenant
    """The request is this tenant's; the anonymous tenant's until a key was found."""

    shape: Shape = OPENAI
    """An error of this request that becomes a response gets this shape."""

    check_key: Callable[[], object] = lambda: None
    """A request of a long duration calls this now and then. Raises Unauthorized if the key of
    the request was revoked meanwhile."""

    span: Span = NO_SPAN
    outcome: RequestOutcome = field(default_factory=RequestOutcome)
    claim: Claim = field(default_factory=Claim)

    @property
    def clock(self) -> Clock:
        return self.usage.times.clock

    def failed(self, raised: Exception) -> ApiError:
        """Record what was raised, and return the error that the client gets."""
        return self.outcome.failed(raised)

    def begin_answers(self, answers: int) -> None:
        """Begin this many more answers. Raises RateLimited."""
        self.tenant.begin(self.clock(), answers)
        self.claim.answers += answers

    def hold(self, body_bytes: int) -> None:
        """Note that so many bytes of the body are held. Raises Overloaded."""
        others_bytes = self.tenant.held_bytes - self.claim.held_bytes
        self.tenant.held_bytes, self.claim.held_bytes = others_bytes + body_bytes, body_bytes
        if others_bytes and self.tenant.held_bytes > MAX_HELD_BYTES:
            reason = f"the bodies of running requests exceed {MAX_HELD_BYTES} bytes together"
            raise Overloaded(reason)

    def serve(self, model: str, name: str | None, operation: str) -> None:
        """Note which model answers, by the engine's name for it, and which one the client asked
        for. operation: "chat" or "text_completion", as OpenTelemetry names them."""
        self.usage.run(model)
        if self.span is not NO_SPAN:
            self.span.note(
                operation=operation, model=shown(name or model), response_model=model
            )

    def close(self) -> None:
        """End the answers, and charge the tenant for their tokens."""
        usage, outcome = self.usage, self.outcome
        usage.stop_running()
        if usage.series is not None:
            usage.series.speculated(usage.total())
            if usage.times.first_s is not None:
                usage.series.request_s.observe(usage.times.elapsed_s)
            if outcome.is_early and not usage.endings:
                is_abort = outcome.error in (None, ClientGone.code)
                usage.series.success["abort" if is_abort else "error"].inc()
        self.tenant.held_bytes -= self.claim.held_bytes
        self.tenant.end(self.claim.answers)
        self._spend()

    def _spend(self) -> None:
        """Charge the tenant for the tokens since the last call. With a charge only at the end,
        answers could still begin after running ones have used up a minute's tokens."""
        usage, claim = self.usage, self.claim
        self.tenant.spend(usage.completion_tokens - claim.completion_tokens, self.clock())
        claim.completion_tokens = usage.completion_tokens

    def took_prompt(self, tokens: int, *, choices: int = 1) -> None:
        """Count the tokens of all prompts. choices: number of choices of each prompt."""
        self.usage.prompt_tokens, self.usage.choices_of_prompt = tokens, choices
        (self.usage.series or self.usage.serve("")).prompt_tokens.inc(tokens)
        self.tenant.spend(tokens, self.clock())

    def count(self, index: int, delta: TextDelta) -> None:
        """Count and charge what choice `index` generated."""
        self.usage.count(index, delta)
        if delta.tokens:
            self._spend()

    def end_span(self, status: int) -> None:
        """End the request's span with what was counted."""
        if self.span is NO_SPAN:
            return
        facts: dict[str, Fact] = {"status": status, "prompt_tokens": self.usage.prompt_tokens}
        if self.usage.endings:
            facts["finish_reasons"] = tuple(self.usage.endings)
        if self.usage.times.first_s is not None:  # a verifier counts in the session's span
            counted = self.usage.total()
            facts |= {
                "completion_tokens": self.usage.completion_tokens,
                "first_token_s": self.usage.times.first_s,
                "draft_tokens": counted.draft_tokens,
                "accepted_tokens": counted.accepted_tokens,
                "acceptance": counted.acceptance,
            }
        self.span.end(self.outcome.error, **facts)


def context_of(request: HTTPConnection) -> RequestContext:
    """Return the context that the middleware has given a request."""
    context: RequestContext = request.state.context
    return context
