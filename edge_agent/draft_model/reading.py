"""What the draft model reads of a long prompt: a view, which is its first and last tokens.

The draft model would read a long prompt for minutes, while the target answers without drafts.
So it reads the first tokens, to which every model attends (arXiv:2309.17453), and as many of
the last ones as it reads in a second. They have consecutive positions, as a short context has.

* What the slot holds is not read again, so the next turn of a conversation goes on from there.
* A view may cost acceptance, and cannot change the text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from picospec.models.llama_cpp.kv_reuse import common_prefix
from picospec.speculation.protocol.messages import TokenId

READ_S: Final = 1.0
"""Reading the last tokens of a prompt takes so long, in seconds."""

FIRST_TOKENS: Final = 64
"""The first tokens of a view: of most templates, the beginning of the system message."""

PRIOR_TOKENS_A_S: Final = 128.0
"""The reading speed before any was measured: that of 0.5B on one core."""

LEAST_TOKENS: Final = 64
"""A view has at least so many last tokens, however slowly they are read."""

TIMED_TOKENS: Final = 16
"""Passes of fewer tokens say nothing of the reading speed."""


@dataclass(frozen=True, slots=True)
class View:
    """A context without `skipped` tokens behind its first ones."""

    first: int = 0
    skipped: int = 0

    def of(self, context: Sequence[TokenId]) -> list[TokenId]:
        return [*context[: self.first], *context[self.first + self.skipped :]]


WHOLE: Final = View()


@dataclass(slots=True)
class Reading:
    """How much of a prompt is read. room: tokens that a slot holds."""

    room: int
    tokens_a_s: float = PRIOR_TOKENS_A_S

    def observe(self, tokens: int, took_s: float) -> None:
        """Learn from a pass."""
        if tokens >= TIMED_TOKENS and took_s > 0:
            self.tokens_a_s += (tokens / took_s - self.tokens_a_s) / 4

    def view(
        self, context: Sequence[TokenId], held: Sequence[TokenId] = (), before: View = WHOLE
    ) -> View:
        """Return the view of a context in a slot that holds `held`, which was the view `before`
        of another one."""
        first, last = min(FIRST_TOKENS, self.room // 4), self._last
        for view in (WHOLE, before):
            seen = view.of(context)
            kept = common_prefix(held, seen)
            goes_on = view is WHOLE or kept > view.first
            if goes_on and len(seen) - kept <= first + last and len(seen) < self.room:
                return view
        if first < (kept := common_prefix(held, context)) <= self.room // 2:
            first = kept
        return View(first, len(context) - first - last)

    def wider(self, context: Sequence[TokenId]) -> View:
        """Return the view of a context that is read beside the steps: all of it, if an answer
        has room behind it, or more first tokens, which often tell of tools."""
        if len(context) <= self.room * 3 // 4:
            return WHOLE
        first = self.room // 2
        return View(first, len(context) - first - self._last)

    @property
    def _last(self) -> int:
        return min(max(LEAST_TOKENS, int(READ_S * self.tokens_a_s)), self.room // 4)
