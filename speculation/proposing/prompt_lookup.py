"""Drafting without a model: what followed when these tokens were said before.

Answers repeat their prompt and themselves: code that is edited, names, quotations. An *n-gram*
is n tokens in a row; the index knows which token followed where each last stood (prompt lookup,
Yang et al. 2023, arXiv:2304.04487). Such a guess takes no draft step, but is wrong more often
than the draft model's, above all where only few tokens matched. So it is worth its risk where
drafting is what limits, and where the matches of its length have been right so far: that is
learned from every committed token, whether the match was used or not.

Where it is not, the draft model may read what followed: a step over four tokens takes two or
three times as long as one over one, and tells of each whether the model would have guessed it
(staged speculation, Spector and Re 2023, arXiv:2308.04623). Such guesses are the draft model's
own, so that nothing is at risk. What a chain that broke went on with is read so as well: after
the token that was wrong, the text often says the same.

Only for sessions judged `coupled`: there any guess is exact, however it was come by.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf
from typing import Final

from speculation.drafting.session import DraftingSession
from speculation.proposing.ngrams import Index, resumption
from speculation.protocol.messages import TokenId
from speculation.sampling.draft_token import DraftToken
from speculation.smoothing import smoothed

LEAST_GUESSED: Final = 3
"""A shorter match is only read: no guess rests on it alone."""

FIRST_TRUST: Final = {16: (0.99, 16), 8: (0.88, 8), 3: (0.70, 8), 1: (0.25, 8)}
"""How often a match is right, and for how many matches that counts at first. Measured on the
Qwen pair, 36 prompts at temperatures 0 and 1. 16 tokens or more: .995. 8 to 15: .97 in code and
edits, .67 in chat and maths. 3 to 7: .84 and .68. The draft model at the same places: .84 to 1.
1 or 2 (18 prompts): .22 to .36.
"""

LEARNING: Final = 1 / 32
"""Weight of the latest match, once so many were seen: trust follows the text as it changes."""

STEPS_A_PASS: Final = 6
"""Where a pass lasts longer than so many draft steps, the draft model fills it well enough. In
the simulator a pass of 8.5 steps still gains 2 %; one of 10.7 loses as much, edits a tenth."""

MARGIN: Final = 2.0
"""A wrong guess costs more than a round trip and a pass: the drafts after it are lost too. In
the simulator 2 loses less than 1 % in every cell, 1 up to 3 %; 4 gains a sixth less."""

READING: Final = 0.25
"""Of a draft step: what reading one more token takes the draft model, until it is measured."""

AHEAD: Final = (3, 7, 15)
"""Tokens that a step may read ahead: with the last one blocks of four rows, as llama.cpp's
kernels have them."""

RESUMES: Final = {1: 0.45, 2: 0.8, 3: 0.9}
"""How often the draft model says what a chain that broke went on with, where so many tokens
before are the same. Measured on the Qwen pair: 1: .66 in maths and .34 in chat; 2: .88, .74; 3:
.95, .86. In maths half of the eight tokens after a break have such a place, in chat a fifth.
"""


@dataclass(frozen=True, slots=True)
class Times:
    """What the edge has measured, in seconds; 0 where it has not yet."""

    rtt_s: float
    pass_s: float
    draft_s: float
    """A draft step; inf where no draft model is at hand."""


@dataclass(slots=True)
class Trust:
    """How often the matches of one length are right: a mean that begins at an estimate."""

    right: float
    seen: int

    def learn(self, stands: bool) -> None:
        self.seen += 1
        self.right = smoothed(self.right, stands, max(LEARNING, 1 / self.seen))


def worth(confidence: float, times: Times, *, read_s: float) -> bool:
    """Return whether a guess from a match is worth more than the draft model's.

    read_s: what the draft model takes to read a token that it did not guess. The guess saves a
    step less that; when it is wrong, a round trip and a pass are lost. Where there is no draft
    model it can only gain: the verifier judges no rows, and waits for none, that do not pay.
    """
    if times.draft_s == inf:
        return True
    if not 0.0 < times.pass_s < STEPS_A_PASS * times.draft_s:
        return False
    lost_s = (1.0 - confidence) * (times.rtt_s + times.pass_s)
    return MARGIN * lost_s <= times.draft_s - read_s


def worth_reading(right: float, times: Times, *, read_s: float) -> int:
    """Return how many tokens a step should read ahead, each right as often as that.

    read_s: what each of them takes. Every one that the draft model says too is a step saved,
    if all before it are.
    """
    if not 0.0 < times.draft_s < inf:
        return 0

    def gain_s(count: int) -> float:
        saved = sum(right**n for n in range(1, count + 1))
        return saved * times.draft_s - count * read_s

    return max((0, *AHEAD), key=gain_s)


def take(
    session: DraftingSession, guesses: Sequence[DraftToken], may_draft: Callable[[], bool]
) -> int:
    """Extend the chain by a step's guesses; return by how many. The first was due, the others
    are taken while more may be drafted."""
    count = 0
    for guess in guesses:
        if count and not (session.may_extend and may_draft()):
            break
        session.extend(guess)
        count += 1
    return count


class Lookup:
    """One session's index, and what its matches are worth."""

    def __init__(self, prompt: Sequence[TokenId]) -> None:
        self._index = Index(prompt)
        self._prompt_tokens = len(prompt)
        self._matches = [self._index.match()]  # for each position, up to the next one
        self._trust = {length: Trust(*first) for length, first in FIRST_TRUST.items()}
        self._committed = 0
        self._read_s: float | None = None
        self._unsaid: list[TokenId] = []
        """What the last chain that broke went on with, from its wrong token on."""

        self._unsaid_at = 0

    def draft(
        self, session: DraftingSession, times: Times, may_draft: Callable[[], bool]
    ) -> int:
        """Extend the chain while matches are worth it; return by how many guesses."""
        count = 0
        while session.may_extend and may_draft() and (guess := self.guess(session, times)):
            session.extend(guess)
            count += 1
        return count

    def guess(self, session: DraftingSession, times: Times) -> DraftToken | None:
        """Return the guess that follows the chain, if there is one and it is worth it."""
        self._follow(session)
        match = self._matches[-1]
        if match is None or match.length < LEAST_GUESSED:
            return None
        confidence = self._trust[match.length].right
        if not worth(confidence, times, read_s=self._reading_s(times)):
            return None
        return DraftToken(match.token, confidence)

    def ahead(self, session: DraftingSession, times: Times) -> list[TokenId]:
        """Return what the draft model should read behind the chain in its next step."""
        self._follow(session)
        text = self._index.tokens
        options: list[tuple[float, list[TokenId]]] = []
        if match := self._matches[-1]:
            said = text[match.at : match.at + max(AHEAD)]
            options.append((self._trust[match.length].right, said))
        if match := resumption(self._unsaid, text, self._unsaid_at, most=max(RESUMES)):
            options.append((RESUMES[match.length], self._unsaid[match.at :]))
        right, tokens = max(options, default=(0.0, []))
        return tokens[: worth_reading(right, times, read_s=self._reading_s(times))]

    def read(self, more: int, took_s: float, draft_s: float) -> None:
        """The draft model made a step that read so many tokens more than one.

        draft_s: a step that reads one.
        """
        if more > 0 and draft_s > 0.0:
            self._read_s = smoothed(self._read_s, max(0.0, took_s - draft_s) / more)

    def _reading_s(self, times: Times) -> float:
        return READING * times.draft_s if self._read_s is None else self._read_s

    def _follow(self, session: DraftingSession) -> None:
        """Bring the index to the prompt, the committed tokens and the chain.

        A chain that broke left the index at the committed token that was not its own.
        """
        for position in range(self._committed, len(session.committed)):
            self._commit(position, session.committed[position])
        self._committed = len(session.committed)
        end = self._prompt_tokens + self._committed
        for guess in session.chain[len(self._index.tokens) - end :]:
            self._append(guess.token)

    def _commit(self, position: int, token: TokenId) -> None:
        if (match := self._matches[position]) is not None:
            self._trust[match.length].learn(match.token == token)
        at = self._prompt_tokens + position
        if self._index.tokens[at : at + 1] != [token]:
            self._cut(at)
            self._append(token)

    def _cut(self, length: int) -> None:
        if len(self._index.tokens) > length + 1:
            self._unsaid, self._unsaid_at = self._index.tokens[length:], length
        self._index.truncate(length)
        del self._matches[length - self._prompt_tokens + 1 :]

    def _append(self, token: TokenId) -> None:
        self._index.append(token)
        self._matches.append(self._index.match())
