"""What speculation did for one job, counted from its Commits and corrected by its Finish."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import repeat, zip_longest

from picospec.gateway.ports import Statistics
from picospec.speculation.proposing.prediction import Prediction
from picospec.speculation.protocol.messages import Commit, TokenId, Totals


def with_commit(before: Statistics, commit: Commit) -> Statistics:
    """Count one more Commit, which does not say how many draft tokens its pass judged.

    Until the Finish, only passes with an accepted draft token count as having had any, and only
    accepted draft tokens count as judged.
    """
    accepted = repeat(1, commit.drafts)
    per_position = zip_longest(before.accepted_per_position, accepted, fillvalue=0)
    counts = tuple(earlier + now for earlier, now in per_position)
    drafts, total = counts[0] if counts else 0, sum(counts)
    return replace(
        before,
        target_passes=before.target_passes + 1,
        drafts=drafts,
        draft_tokens=total,
        accepted_tokens=total,
        accepted_per_position=counts,
    )


def with_prediction(
    counted: Statistics, prediction: Prediction, committed: Sequence[TokenId]
) -> Statistics:
    """Add what has become of the client's prediction by now."""
    prediction.follow(committed)
    return replace(
        counted,
        accepted_prediction_tokens=prediction.accepted_tokens,
        rejected_prediction_tokens=prediction.rejected_tokens,
    )


def with_totals(counted: Statistics, totals: Totals) -> Statistics:
    """Return the statistics of a finished job, whose totals the verifier has sent."""
    return replace(
        counted,
        target_passes=totals.passes,
        drafts=totals.passes - totals.filled,
        draft_tokens=totals.judged,
        accepted_tokens=totals.accepted,
    )
