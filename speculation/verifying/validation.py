"""What a Draft must be to come from a correct edge. Each error names the field.

An edge knows its own draft tokens and a part of the committed text: never more of it than the
verifier, but for a recovered token that the edge draws. So a Draft may be late, early or
repeated, and still none of these errors can happen.
"""

from __future__ import annotations

from picospec.speculation.protocol.errors import RemoteProtocolError
from picospec.speculation.protocol.messages import Draft


def check(draft: Draft, text_end: int, *, vocabulary_size: int, max_ahead: int) -> None:
    """Raise RemoteProtocolError. text_end: how much of the text the edge may know."""
    if not draft.tokens:
        raise RemoteProtocolError("Draft.tokens: empty")
    if (highest := max(draft.tokens)) >= vocabulary_size:
        raise RemoteProtocolError(f"Draft.tokens: {highest} is not a token")
    if draft.behind > draft.start:
        raise RemoteProtocolError(f"Draft.behind: {draft.behind} are not before {draft.start}")
    ahead = draft.start + len(draft.tokens) - text_end
    if ahead > max_ahead:
        raise RemoteProtocolError(f"Draft.start: {ahead} ahead, over {max_ahead}")
    if draft.start - draft.behind > text_end:
        raise RemoteProtocolError(f"Draft.behind: {draft.behind} leave a gap to the text")
