"""The edge's record of one answer: what is committed, and the chain of draft tokens after it.

The chain grows by `extend`, travels by `flush` and shrinks from the front as Commits confirm
it. The first committed token that differs from the chain breaks it: the chain is dropped and
the epoch rises. No state changes when a method raises.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import takewhile
from math import prod

from speculation.draft_token import DraftToken
from speculation.errors import LocalProtocolError, RemoteProtocolError
from speculation.messages import (
    CachedPromptTokens,
    Commit,
    Down,
    Draft,
    Finish,
    FinishReason,
    Open,
    Reject,
)
from speculation.model_facts import MAX_VERIFY, TokenId


class DraftingSession:
    def __init__(self, *, max_tokens: int, stop_tokens: Sequence[TokenId]) -> None:
        self.epoch = 0
        self.committed: list[TokenId] = []
        self.chain: list[DraftToken] = []
        self.misses = 0  # chains in a row whose first draft token was rejected
        self.in_flight = 0  # draft tokens sent and not yet confirmed by a Commit
        self._broke_at = 0
        self._max_tokens = max_tokens
        self._stop_tokens = frozenset(stop_tokens)

    @property
    def finished(self) -> FinishReason | None:
        """The reason why the committed text is complete, None if it is not."""
        if not self._stop_tokens.isdisjoint(self.committed[-1:]):
            return "stop"
        return "length" if len(self.committed) >= self._max_tokens else None

    @property
    def context(self) -> list[TokenId]:
        """The committed tokens and the chain after them; the next draft token follows these."""
        return self.committed + [drafted.token for drafted in self.chain]

    @property
    def end(self) -> int:
        return len(self.committed) + len(self.chain)

    @property
    def survival(self) -> float:
        """The estimated probability that the whole chain is accepted."""
        return prod([drafted.confidence for drafted in self.chain])

    @property
    def since_break(self) -> int:
        """Tokens committed since the last chain broke."""
        return len(self.committed) - self._broke_at

    @property
    def unsent(self) -> int:
        return len(self.chain) - self.in_flight

    @property
    def may_extend(self) -> bool:
        """True if a token can follow: neither the text nor the chain ends the answer."""
        committed, chain, stops = self.committed, self.chain, self._stop_tokens
        if len(committed) + len(chain) >= self._max_tokens:
            return False
        if committed and committed[-1] in stops:
            return False
        return not (chain and chain[-1].token in stops)

    def extend(self, drafted: DraftToken) -> None:
        if not self.may_extend:
            raise LocalProtocolError("nothing can follow this chain")
        self.chain.append(drafted)

    def flush(self, *, pauses: bool = False) -> Draft | None:
        """Return the unsent draft tokens, if any, as the next message to the verifier. pauses:
        no more draft tokens will follow until there is a Commit."""
        new = self.chain[self.in_flight :]
        if not new:
            return None
        start, offset = len(self.committed) + self.in_flight, self.in_flight
        tokens = tuple(drafted.token for drafted in new)
        q = tuple(drafted.q.of(drafted.token) for drafted in new if drafted.q)
        self.in_flight = len(self.chain)
        return Draft(self.epoch, start, offset, tokens, q or None, pauses=pauses)

    def receive(self, commit: Commit) -> tuple[TokenId, ...]:
        """Take in a Commit and return those of its tokens that were not known before. Raise
        RemoteProtocolError for a Commit that no correct verifier sends."""
        known = len(self.committed) - commit.start
        self._check(commit, known)
        tokens = commit.tokens[known:]
        self.committed.extend(tokens)
        pairs = zip(self.chain, tokens, strict=False)
        agreed = sum(1 for _ in takewhile(lambda pair: pair[0].token == pair[1], pairs))
        broken = agreed < min(len(tokens), len(self.chain))
        if agreed:
            self.misses = 0
        if broken:
            self.misses += not agreed
            self._break()
        else:
            del self.chain[:agreed]
            self.in_flight = max(0, self.in_flight - agreed)
        return tokens

    def _check(self, commit: Commit, known: int) -> None:
        count, logprobs = len(commit.tokens), commit.logprobs
        if known < 0:
            raise RemoteProtocolError(f"Commit.start: {commit.start} is {-known} tokens ahead")
        if commit.start + count > self._max_tokens:
            raise RemoteProtocolError(f"Commit.tokens: more than {self._max_tokens} in all")
        if list(commit.tokens[:known]) != self.committed[commit.start :][:count]:
            raise RemoteProtocolError(f"Commit.tokens: position {commit.start} has changed")
        if commit.drafts > count:
            raise RemoteProtocolError(f"Commit.accepted: {commit.drafts} of {count} tokens")
        if logprobs is not None and len(logprobs) != count:
            raise RemoteProtocolError("Commit.logprobs: one for each token")

    def before(self, reject: Reject) -> tuple[DraftToken, ...]:
        """Return the draft tokens that a Reject accepts, which are those before the rejected
        one. Raise RemoteProtocolError if the rejected one was never sent."""
        accepted = reject.position - len(self.committed)
        if accepted >= self.in_flight:
            raise RemoteProtocolError(f"Reject.position: no draft is at {reject.position}")
        if reject.epoch != self.epoch:
            raise RemoteProtocolError(f"Reject.epoch: {reject.epoch}, not {self.epoch}")
        return tuple(self.chain[:accepted])

    def _break(self) -> None:
        self.epoch += 1
        self.chain.clear()
        self._broke_at = len(self.committed)
        self.in_flight = 0


def check(
    message: Down, request: Open, vocabulary_size: int, committed: Sequence[TokenId]
) -> None:
    """Raise RemoteProtocolError for values that no message may have, whatever the chain is. A
    CachedPromptTokens is compared with the number of tokens committed before."""
    match message:
        case Commit(tokens=tokens, logprobs=logprobs):
            if len(tokens) > MAX_VERIFY + 1:
                raise RemoteProtocolError(f"Commit.tokens: more than {MAX_VERIFY + 1}")
            _check_tokens("Commit.tokens", tokens, vocabulary_size)
            most = request.top_logprobs or 0
            if logprobs and max(len(entry.top) for entry in logprobs) > most:
                raise RemoteProtocolError(f"Commit.logprobs: more than {most} for a token")
        case Reject(head=head, tail=tail):
            _check_tokens("Reject", (token for token, _ in (*head, *tail)), vocabulary_size)
        case CachedPromptTokens(tokens=count) if count > (
            known := len(request.prompt) + len(committed)
        ):
            raise RemoteProtocolError(f"CachedPromptTokens.tokens: {count} of {known}")
        case Finish(totals=totals) if totals.verifier_accepted > totals.accepted:
            raise RemoteProtocolError(
                f"Finish.verifier_accepted: {totals.verifier_accepted} of {totals.accepted}"
            )


def _check_tokens(field: str, tokens: Iterable[TokenId], vocabulary_size: int) -> None:
    if (highest := max(tokens, default=0)) >= vocabulary_size:
        raise RemoteProtocolError(f"{field}: {highest} is no token")
