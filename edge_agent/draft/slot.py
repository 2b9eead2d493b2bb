"""A session's slot in the draft model's KV cache, its steps, and the view that these read.

The draft model would read a long prompt for minutes, while the target answers without drafts.
So it reads a view: the first tokens, to which every model attends (arXiv:2309.17453), and as
many of the last ones as it reads in a second. They have consecutive positions, as in a short
context.

* The slot's tokens are not read again, so the next turn of a conversation goes on from there.
* A view may cost acceptance, and cannot change the text.
"""

from __future__ import annotations

import asyncio
import queue
import time
from collections.abc import Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

from edge_agent.draft.drafter import CannotDraft, StepSampler
from local_models.llama_cpp.model import Context
from local_models.llama_cpp.prefix import common_prefix
from speculation.draft_token import DraftSampler, DraftToken
from speculation.model_facts import TokenId

READ_S: Final = 1.0
"""Reading the last tokens of a prompt takes about this many seconds."""

FIRST_TOKENS: Final = 64
"""A view has this many first tokens: in most templates, the start of the system message."""

PRIOR_TOKENS_PER_S: Final = 128.0
"""The assumed reading speed before any is measured: that of a 0.5B model on one core."""

MIN_TOKENS: Final = 64
"""A view has at least this many last tokens, however slowly they are read."""

TIMED_TOKENS: Final = 16
"""Passes of fewer tokens do not show the reading speed."""


@dataclass(frozen=True, slots=True)
class View:
    """A context without the `skipped` tokens after its `first` ones."""

    first: int = 0
    skipped: int = 0

    def of(self, context: Sequence[TokenId]) -> list[TokenId]:
        return [*context[: self.first], *context[self.first + self.skipped :]]


WHOLE: Final = View()


@dataclass(slots=True)
class ReadingPolicy:
    """Decides how much of a prompt is read. room: the number of tokens that a slot holds."""

    room: int
    tokens_per_s: float = PRIOR_TOKENS_PER_S

    def observe(self, tokens: int, took_s: float) -> None:
        """Learn from a pass."""
        if tokens >= TIMED_TOKENS and took_s > 0:
            self.tokens_per_s += (tokens / took_s - self.tokens_per_s) / 4

    def view(
        self, context: Sequence[TokenId], held: Sequence[TokenId] = (), before: View = WHOLE
    ) -> View:
        """Return the view of a context in a slot that holds `held`, which was the view `before`
        of another context."""
        first, last = min(FIRST_TOKENS, self.room // 4), self._last
        for view in (WHOLE, before):
            seen = view.of(context)
            kept = common_prefix(held, seen)
            can_continue = view is WHOLE or kept > view.first
            if can_continue and len(seen) - kept <= first + last and len(seen) < self.room:
                return view
        if first < (kept := common_prefix(held, context)) <= self.room // 2:
            first = kept
        return View(first, len(context) - first - last)

    def wider_view(self, context: Sequence[TokenId]) -> View:
        """Return the view of a context to read beside the steps: all of it, if an answer fits
        behind it, or more first tokens, which often describe tools."""
        if len(context) <= self.room * 3 // 4:
            return WHOLE
        first = self.room // 2
        return View(first, len(context) - first - self._last)

    @property
    def _last(self) -> int:
        return min(max(MIN_TOKENS, int(READ_S * self.tokens_per_s)), self.room // 4)


@dataclass(slots=True, eq=False)
class KvSlot:
    """One sequence of the KV cache. Only the thread changes the fields after `taken_at`."""

    index: int
    taken: bool = False
    taken_at: int = 0
    """It was taken for the last time after those with a smaller number."""

    tokens: list[TokenId] = field(default_factory=list)
    owner: object = None
    view: View = WHOLE
    session: object = None
    """The tokens were last read for this session."""

    wider_view: View = WHOLE
    rest: Sequence[TokenId] = ()
    """The tokens of the wider view of the session's context, if it is still to be read."""

    def rewind(self, tokens: Sequence[TokenId], cache: Context) -> None:
        """Truncate the sequence to its common prefix with `tokens`, or to fewer if the draft
        model has recurrent layers."""
        length = common_prefix(self.tokens, tokens)
        if length < len(self.tokens):
            del self.tokens[cache.truncate(self.index, length) :]

    def own(self, owner: object, cache: Context) -> None:
        """Clear the sequence if it is another owner's, and make it this owner's."""
        if self.owner is not owner:
            self.rewind((), cache)
            self.owner = owner

    def begin(self, tokens: Sequence[TokenId], source: KvSlot, cache: Context) -> None:
        """Keep the beginning of `tokens`, as far as this slot or `source` has it. The tokens
        belong to the owner of `source`."""
        self.own(source.owner, cache)
        if common_prefix(source.tokens, tokens) > common_prefix(self.tokens, tokens):
            cache.copy(source.index, self.index)
            self.tokens = list(source.tokens)
        self.rewind(tokens, cache)

    def swap_with(self, spare: KvSlot) -> None:
        """Swap sequences with the spare slot, which has read the wider view."""
        self.index, spare.index = spare.index, self.index
        self.tokens, spare.tokens = spare.tokens, self.tokens
        self.view, self.rest = self.wider_view, ()

    def held_of(self, owner: object) -> list[TokenId]:
        """Return the tokens in the cache that an owner may reuse."""
        return self.tokens if self.owner is owner else []

    def cost(
        self, prompt: Sequence[TokenId], owner: object, reading: ReadingPolicy
    ) -> tuple[bool, int]:
        """Return the sort key of slots for a prompt: the slot that holds most of it comes
        first, if that is half of its tokens; then the one that was taken least recently."""
        held = self.held_of(owner)
        kept = common_prefix(held, reading.view(prompt, held, self.view).of(prompt))
        return (False, -kept) if 2 * kept >= len(held) > 0 else (True, self.taken_at)


@dataclass(frozen=True, slots=True, eq=False)
class StepRequest:
    """A step that a session asked for; see DraftSlot.step."""

    session: LlamaSlot
    context: Sequence[TokenId]
    ahead: Sequence[TokenId]
    position: int
    """The position of the first draft token, counted from the end of the prompt."""

    sampler: DraftSampler
    drafts: Future[list[DraftToken]] = field(default_factory=Future)
    """The result. The session cancels it when it no longer needs the step."""

    def seen(self, reading: ReadingPolicy, cache: Context) -> list[TokenId]:
        """Return the tokens of the context that the draft model reads."""
        session, slot, context = self.session, self.session.slot, self.context
        if slot.session is not session:
            slot.own(session.owner, cache)
            before, slot.session = slot.view, session
            whole = session.whole
            slot.view = WHOLE if whole else reading.view(context, slot.tokens, before)
            slot.wider_view, slot.rest = reading.wider_view(context), context
        elif len(context) - slot.view.skipped > reading.room and not session.whole:
            slot.view = reading.view(context)
        if slot.rest:
            wider_view = slot.view.skipped > slot.wider_view.skipped
            slot.rest = slot.wider_view.of(context) if wider_view else ()
        return slot.view.of(context)

    def succeed(self, drafts: list[DraftToken]) -> None:
        with suppress(InvalidStateError):  # cancelled, or failed, in another thread
            self.drafts.set_result(drafts)

    def fail(self, reason: CannotDraft) -> None:
        with suppress(InvalidStateError):
            self.drafts.set_exception(reason)


@dataclass(slots=True, eq=False)
class LlamaSlot:
    """A DraftSlot whose steps go to the thread through `requests`. whole: True if the steps
    read their whole contexts."""

    slot: KvSlot
    prompt_tokens: int
    requests: queue.SimpleQueue[StepRequest | None]
    owner: object
    whole: bool
    _left: bool = False
    _idle_since: float | None = field(default_factory=lambda: time.monotonic())
    """None during a step."""

    @property
    def idle_s(self) -> float:
        """The seconds since the last step ended; 0 while one is made."""
        since = self._idle_since
        return 0.0 if since is None else time.monotonic() - since

    async def step(
        self, context: Sequence[TokenId], sampler: StepSampler, *, ahead: Sequence[TokenId] = ()
    ) -> list[DraftToken]:
        if self._left:
            raise CannotDraft("it made no step for long, and another answer took its slot")
        position = len(context) - self.prompt_tokens
        # a row of `ahead` is used only where the draft tokens before it equal those ahead
        draw = sampler([*context[self.prompt_tokens :], *ahead])
        request = StepRequest(self, context, ahead, position, draw)
        self.requests.put(request)
        self._idle_since = None
        try:
            return await asyncio.wrap_future(request.drafts)
        finally:
            self._idle_since = time.monotonic()

    def leave(self) -> None:
        if not self._left:
            self._left = True
            self.slot.taken = False
