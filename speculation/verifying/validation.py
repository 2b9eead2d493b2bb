"""What a Draft must be to come from an honest edge. Each error names the field.

An edge knows its own draft tokens and a part of the committed text, never more of it than the
verifier. So a Draft may be late, early or repeated, and still none of these errors can happen.
"""

from __future__ import annotations

from collections.abc import Sequence

from picospec.speculation.protocol.errors import RemoteProtocolError
from picospec.speculation.protocol.messages import Draft, Judge, TokenId
from picospec.speculation.sampling.distributions import Q_SCALE
from picospec.speculation.sampling.judging import Rejection


def check_form(draft: Draft, judge: Judge, *, vocabulary_size: int) -> None:
    """Raise RemoteProtocolError for what is wrong whatever the state of the session."""
    if not draft.tokens:
        raise RemoteProtocolError("Draft.tokens: empty")
    if (highest := max(draft.tokens)) >= vocabulary_size:
        raise RemoteProtocolError(f"Draft.tokens: {highest} is not a token")
    if draft.behind > draft.start:
        raise RemoteProtocolError(f"Draft.behind: {draft.behind} are not before {draft.start}")
    if draft.forced and judge == "coupled":
        raise RemoteProtocolError("Draft.forced: only in judge `separate`")
    if draft.forced and draft.behind:
        raise RemoteProtocolError("Draft.behind: a recovered token begins its chain")
    count = len(draft.tokens) - draft.forced
    if (draft.q is None) != (judge == "coupled"):
        raise RemoteProtocolError(f"Draft.q: wrong for judge `{judge}`")
    if draft.q is not None and len(draft.q) != count:
        raise RemoteProtocolError(f"Draft.q: {len(draft.q)} weights for {count} draft tokens")
    if draft.q and not all(0 < weight <= Q_SCALE for weight in draft.q):
        raise RemoteProtocolError(f"Draft.q: a weight outside 1..{Q_SCALE}")


def check_place(
    draft: Draft, committed: Sequence[TokenId], rejection: Rejection | None, *, max_ahead: int
) -> None:
    """Raise RemoteProtocolError for what cannot be sent at this point of the session."""
    ahead = draft.start + len(draft.tokens) - len(committed)
    if ahead > max_ahead:
        raise RemoteProtocolError(f"Draft.start: {ahead} ahead, over {max_ahead}")
    if draft.start - draft.behind > len(committed):
        raise RemoteProtocolError(f"Draft.behind: {draft.behind} leave a gap to the text")
    if not draft.forced:
        return
    token, position = draft.tokens[0], draft.start
    if position < len(committed):
        if committed[position] != token:
            raise RemoteProtocolError(f"Draft.forced: position {position} is committed")
    elif rejection is None:
        raise RemoteProtocolError(f"Draft.forced: no recovered token is awaited at {position}")
    elif not rejection.allows(token):
        raise RemoteProtocolError(f"Draft.forced: token {token} cannot be the recovered token")
