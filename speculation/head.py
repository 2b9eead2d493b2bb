"""The proposals of the target's own head, such as EAGLE, for one session.

The tokens themselves stay in the engine. A pass judges either them or the edge's chain:
whichever is expected to have more tokens accepted.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from speculation.learning import Precision

PRIOR: Final = 0.7
"""The assumed precision of a head before any of its tokens was judged; it counts as PRIOR_SEEN
observations. EAGLE-3 and n-grams are reported from 0.5 to 0.8."""

PRIOR_SEEN: Final = 4

NO_DRAFT_WAIT: Final = 0.5
"""A session does not wait for its edge's draft tokens if the head is expected to have this many
tokens accepted: waiting for the edge would then gain little. Not tuned."""


@dataclass(slots=True)
class Head:
    """tokens: the number that the head proposes after the committed text; 0 once a pass has
    begun, which takes them or makes them useless."""

    tokens: int = 0
    precision: Precision = field(default_factory=lambda: Precision(PRIOR, PRIOR_SEEN))

    def expected(self, most: int) -> float:
        """Return the expected number of its first `most` tokens that are accepted."""
        return self.precision.expected(min(self.tokens, most))

    def judged(self, tokens: int, accepted: int) -> None:
        """Learn from a pass. Tokens after the first wrong one give no information."""
        for _ in range(accepted):
            self.precision.observe(True)
        if accepted < tokens:
            self.precision.observe(False)
