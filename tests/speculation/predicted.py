"""One answer at a verifier that hears of no edge, and judges four draft tokens a pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from picospec.speculation.judges.judge import Judgement
from picospec.speculation.protocol.messages import Limits, Open, Sampling, TokenId
from picospec.speculation.verifying.session import VerifyingSession

LIMITS = Limits(max_verify=4, max_ahead=16)


@dataclass
class Alone:
    """It runs to the end of `answer`, with the verifier's own draft tokens."""

    answer: Sequence[TokenId]
    predicted: Sequence[TokenId] = ()
    prompt: Sequence[TokenId] = (1,)
    passes: int = 0
    judged: list[tuple[int, bool]] = field(default_factory=list)
    """The positions of draft tokens that were reached, and whether each was right."""

    def __post_init__(self) -> None:
        request = Open(
            "m", "v", tuple(self.prompt), Sampling(), 0, len(self.answer), (),
            own_drafts=True, predicted=tuple(self.predicted),
        )  # fmt: skip
        self.session = VerifyingSession(request, LIMITS, vocabulary_size=10**6, u=iter(()))
        while not self.session.finished:
            self._pass()

    @property
    def wrong(self) -> int:
        return sum(not right for _, right in self.judged)

    def _pass(self) -> None:
        self.passes += 1
        drafts = len(self.session.plan(LIMITS.max_verify))
        start, draft = len(self.session.committed), self.session.begin(drafts).draft
        accepted = 0
        for token in draft:
            right = token == self.answer[start + accepted]
            self.judged.append((start + accepted, right))
            if not right:
                break
            accepted += 1
        tokens = tuple(self.answer[start : start + accepted + 1])
        self.session.resolve(Judgement(tokens, accepted))
