"""What no message of a session may have, whatever the edge knows of its text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from picospec.speculation.protocol.errors import RemoteProtocolError
from picospec.speculation.protocol.facts import MAX_VERIFY
from picospec.speculation.protocol.messages import Commit, Open, Reject, Reused, TokenId


def check_commit(commit: Commit, request: Open, vocabulary_size: int) -> None:
    """Raises RemoteProtocolError."""
    if len(commit.tokens) > MAX_VERIFY + 1:
        raise RemoteProtocolError(f"Commit.tokens: more than {MAX_VERIFY + 1}")
    _check_tokens("Commit.tokens", commit.tokens, vocabulary_size)
    most = request.top_logprobs or 0
    if commit.logprobs and max(len(entry.top) for entry in commit.logprobs) > most:
        raise RemoteProtocolError(f"Commit.logprobs: more than {most} for a token")


def check_reject(reject: Reject, vocabulary_size: int) -> None:
    """Raises RemoteProtocolError."""
    tokens = (token for token, _ in (*reject.head, *reject.tail))
    _check_tokens("Reject", tokens, vocabulary_size)


def check_reused(reused: Reused, request: Open, committed: Sequence[TokenId]) -> None:
    """Raises RemoteProtocolError."""
    if reused.tokens > (known := len(request.prompt) + len(committed)):
        raise RemoteProtocolError(f"Reused.tokens: {reused.tokens} of {known}")


def _check_tokens(field: str, tokens: Iterable[TokenId], vocabulary_size: int) -> None:
    if (highest := max(tokens, default=0)) >= vocabulary_size:
        raise RemoteProtocolError(f"{field}: {highest} is no token")
