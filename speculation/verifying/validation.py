"""What a Draft must be to come from an honest edge. Each rejection names the field.

An edge knows its own guesses and a part of the committed text, never more of it than the
verifier. So a Draft may be late, early or repeated, and still none of these can happen.
"""

from __future__ import annotations

from collections.abc import Sequence

from speculation.protocol.errors import RemoteProtocolError
from speculation.protocol.messages import Draft, Judge, TokenId
from speculation.sampling.distributions import Q_SCALE
from speculation.sampling.judging import Rejection


def check_form(draft: Draft, judge: Judge, *, vocabulary_size: int) -> None:
    """Raise RemoteProtocolError for what is wrong whatever the state of the session."""
    guesses = len(draft.tokens) - draft.forced
    if not draft.tokens:
        raise RemoteProtocolError("Draft.tokens: empty")
    _check_tokens(draft, vocabulary_size)
    if draft.behind > draft.start:
        raise RemoteProtocolError(f"Draft.behind: {draft.behind} are not before {draft.start}")
    if draft.forced and judge == "coupled":
        raise RemoteProtocolError("Draft.forced: only in judge `separate`")
    if draft.forced and draft.behind:
        raise RemoteProtocolError("Draft.behind: a forced token begins its chain")
    if (draft.q is None) != (judge == "coupled"):
        raise RemoteProtocolError(f"Draft.q: wrong for judge `{judge}`")
    if draft.q is not None and len(draft.q) != guesses:
        raise RemoteProtocolError(f"Draft.q: {len(draft.q)} weights for {guesses} guesses")
    if draft.q and not all(0 < weight <= Q_SCALE for weight in draft.q):
        raise RemoteProtocolError(f"Draft.q: a weight outside 1..{Q_SCALE}")


def check_place(
    draft: Draft, committed: Sequence[TokenId], rejection: Rejection | None, *, max_ahead: int
) -> None:
    """Raise RemoteProtocolError for what cannot be said at this point of the session."""
    _check_ahead(draft, committed, max_ahead)
    if draft.start - draft.behind > len(committed):
        raise RemoteProtocolError(f"Draft.behind: {draft.behind} leave a gap to the text")
    if draft.forced:
        _check_forced(draft.tokens[0], draft.start, committed, rejection)


def _check_tokens(message: Draft, vocabulary_size: int) -> None:
    if (most := max(message.tokens)) >= vocabulary_size:
        raise RemoteProtocolError(f"Draft.tokens: {most} is not a token")


def _check_ahead(message: Draft, committed: Sequence[TokenId], max_ahead: int) -> None:
    ahead = message.start + len(message.tokens) - len(committed)
    if ahead > max_ahead:
        raise RemoteProtocolError(f"Draft.start: {ahead} ahead, over {max_ahead}")


def _check_forced(
    token: TokenId, position: int, committed: Sequence[TokenId], rejection: Rejection | None
) -> None:
    if position < len(committed):
        if committed[position] != token:
            raise RemoteProtocolError(f"Draft.forced: position {position} is committed")
    elif rejection is None:
        raise RemoteProtocolError(f"Draft.forced: no replacement awaited at {position}")
    elif not rejection.allows(token):
        raise RemoteProtocolError(f"Draft.forced: token {token} cannot replace the rejected")
