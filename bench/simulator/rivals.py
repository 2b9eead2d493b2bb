"""vLLM's own speculation, beside the target: the rivals, in vLLM's order of work.

In each pass every running request has the rows of its own token and of all tokens that were
proposed for it; nobody asks whether rows are worth their time. Accepted tokens and the bonus
token go to the client over the link. Strict rejection at temperature 0 and judging by shared
noise accept the same tokens: those that equal the target's.

    ngram     what followed the first occurrence of the longest n-gram that ends the text
    suffix    suffix decoding (arXiv:2411.04975), by the library that vLLM uses, if installed
    head      tokens of a head such as EAGLE, each of which is right with a given probability

Each client's texts are no other client's. So a client's own suffix trees propose what the one
tree of vLLM would.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from itertools import count, takewhile
from random import Random
from typing import Any, Final, Protocol

from bench.simulator.ends import Answer, Edge
from bench.simulator.hosts import Action, Clock, Curve, Hosts, Line
from bench.simulator.source import Source
from picospec.link import Path
from speculation.draft_machine import DraftMachine, DraftStep
from speculation.draft_token import DraftToken
from speculation.messages import Commit, Down, Draft, Pushed, TokenId

MIN_LENGTH, MAX_LENGTH = 2, 4
"""An n-gram has a length in this range (prompt_lookup_min, prompt_lookup_max)."""

SUFFIX_SETTINGS: Final = ((1.0, 0.1, 24), (4.0, 0.3, 64))
"""Suffix decoding has these settings, vLLM's defaults and those of `bench run`:
suffix_decoding_max_spec_factor, _min_token_prob and _max_tree_depth."""

MAX_CACHED: Final = 10_000
"""Suffix decoding remembers this many answers, as in vLLM."""

HEAD_SHARE: Final = 0.04
"""A token of a head takes this share of a pass: a layer of 36 and the output matrix. This is an
assumption."""


class Proposer(Protocol):
    """Proposes tokens for the answers of one client, one answer after another."""

    def begin(self, source: Source) -> None:
        """Begin an answer."""

    def extend(self, tokens: Sequence[TokenId]) -> None:
        """Take in the tokens that a pass has committed."""

    def propose(self, most: int) -> Sequence[TokenId]:
        """Return at most `most` tokens that may follow."""


class Ngram:
    """vLLM's n-gram speculation."""

    def begin(self, source: Source) -> None:
        self._text: list[TokenId] = []
        self._first: dict[tuple[TokenId, ...], int] = {}
        """Maps an n-gram to the index of the token that followed it first."""

        self.extend(source.prompt)

    def extend(self, tokens: Sequence[TokenId]) -> None:
        for token in tokens:
            for gram in self._ending():
                self._first.setdefault(gram, len(self._text))
            self._text.append(token)

    def propose(self, most: int) -> Sequence[TokenId]:
        at = next((self._first[gram] for gram in self._ending() if gram in self._first), None)
        return () if at is None else self._text[at : at + most]

    def _ending(self) -> Iterable[tuple[TokenId, ...]]:
        """Return the n-grams that end the text, longest first."""
        lengths = range(min(MAX_LENGTH, len(self._text)), MIN_LENGTH - 1, -1)
        return (tuple(self._text[-n:]) for n in lengths)


class Suffix:
    """Suffix decoding: suffixes of this prompt and answer, and of earlier answers."""

    def __init__(self, factor: float, probability: float, depth: int) -> None:
        """Set up. Raises ImportError without the package arctic-inference."""
        library: Any = import_module("arctic_inference.suffix_decoding")
        self._cache = library.SuffixDecodingCache(depth, MAX_CACHED)
        self._settings = {"max_spec_factor": factor, "min_token_prob": probability}
        self._answers = count()
        self._name: int | None = None

    def begin(self, source: Source) -> None:
        if self._name is not None:
            self._cache.stop_request(self._name)
        self._name, self._text = next(self._answers), list(source.prompt)
        self._cache.start_request(self._name, list(source.prompt))

    def extend(self, tokens: Sequence[TokenId]) -> None:
        self._cache.add_active_response(self._name, list(tokens))
        self._text.extend(tokens)

    def propose(self, most: int) -> Sequence[TokenId]:
        ending = self._text[-self._cache.max_tree_depth :]
        proposal = self._cache.speculate(self._name, ending, most, **self._settings)
        return tuple(proposal.token_ids)


class Head:
    """A head's tokens are each right with the same probability if those before them are."""

    WRONG: Final = -1

    def __init__(self, acceptance: float) -> None:
        self._acceptance = acceptance
        self._chance = Random(0)

    def begin(self, source: Source) -> None:
        self._answer, self._done = source.tokens, 0

    def extend(self, tokens: Sequence[TokenId]) -> None:
        self._done += len(tokens)

    def propose(self, most: int) -> Sequence[TokenId]:
        rest = self._answer[self._done : self._done + most]
        right = takewhile(lambda _: self._chance.random() < self._acceptance, rest)
        proposal = list(right)
        return proposal + [self.WRONG] * (most - len(proposal))


@dataclass(frozen=True, slots=True)
class Speculation:
    """A rival proposes at most this many tokens a pass, by a Proposer for each client; without
    one it is the target alone."""

    tokens: int = 0
    make: Callable[[], Proposer] | None = None
    pass_share: float = 0.0
    """Each of its tokens takes this share of a pass over one row, for all sessions together."""


def ngram(tokens: int) -> Speculation:
    """Return vLLM's n-gram speculation."""
    return Speculation(tokens, Ngram)


def suffix(tokens: int, factor: float, probability: float, depth: int) -> Speculation:
    """Return suffix decoding with these settings; see SUFFIX_SETTINGS."""
    return Speculation(tokens, partial(Suffix, factor, probability, depth))


def head(tokens: int, acceptance: float) -> Speculation:
    """Return a head whose tokens are right with probability `acceptance` each."""
    return Speculation(tokens, partial(Head, acceptance), HEAD_SHARE)


def has_suffix() -> bool:
    """Return True if the library of suffix decoding is installed."""
    return find_spec("arctic_inference") is not None


@dataclass(slots=True, eq=False)
class _Request:
    """One answer that the engine generates."""

    source: Source
    proposer: Proposer | None
    down: Line
    done: int = 0
    proposed: Sequence[TokenId] = field(default=())

    @property
    def left(self) -> int:
        return len(self.source.tokens) - self.done


class Engine:
    """vLLM with speculation. rows: the most of one pass."""

    def __init__(self, clock: Clock, hosts: Hosts, rows: int, speculation: Speculation) -> None:
        self._clock = clock
        self._hosts = hosts
        self._rows = rows
        self._speculation = speculation
        self._requests: list[_Request] = []
        self._running = False

    def receive(self, request: _Request) -> None:
        if request.proposer is not None:
            request.proposer.begin(request.source)
        self._requests.append(request)
        if not self._running:
            self._start()

    def _start(self) -> None:
        if not self._requests:
            return
        self._running = True
        started, spec, hosts = list(self._requests), self._speculation, self._hosts
        decoding = [request for request in started if request.done]
        room = self._rows - len(decoding)
        for request in decoding:
            most = min(spec.tokens, request.left - 1, room)
            request.proposed = ()
            if request.proposer is not None and most > 0:
                request.proposed = request.proposer.propose(most)
                room -= len(request.proposed)
        rows = sum(1 + len(request.proposed) for request in decoding)
        new = [request for request in started if not request.done]
        pass_s = hosts.pass_s.of(rows) if rows else 0.0
        pass_s += sum(hosts.first_s + len(r.source.prompt) * hosts.prefill_s for r in new)
        if rows:
            pass_s += spec.tokens * spec.pass_share * hosts.pass_s.of(1)
        self._clock.after(pass_s, partial(self._end, started))

    def _end(self, started: Sequence[_Request]) -> None:
        self._running = False
        for request in started:
            answer, at = request.source.tokens, request.done
            pairs = zip(request.proposed, answer[at:], strict=False)
            accepted = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
            tokens = tuple(answer[at : at + accepted + 1])
            request.done += len(tokens)
            if request.proposer is not None:
                request.proposer.extend(tokens)
            request.down.send(Commit(0, at, tokens, accepted))
            if not request.left:
                self._requests.remove(request)
        self._start()


def ask(
    clock: Clock,
    engine: Engine,
    speculation: Speculation,
    paths: Callable[[], Path],
    sources: Sequence[Source],
    answers: list[Answer],
) -> None:
    """Ask for one source after another, and append the answers."""
    proposer = speculation.make() if speculation.make is not None else None
    left = list(sources)

    def following() -> None:
        if not left:
            return
        source, up = left.pop(0), paths()
        answer = Answer(source, clock.now_s)

        def receive(message: Down) -> None:
            if isinstance(message, Commit):
                since_s = clock.now_s - answer.asked_s
                answer.arrivals.append((since_s, len(message.tokens)))
                if answer.tokens == len(source.tokens):
                    answers.append(answer)
                    following()

        request = _Request(source, proposer, Line(clock, paths(), receive))
        clock.at(up.arrival(clock.now_s, 0), partial(engine.receive, request))

    following()


# AceSpec (arXiv:2609.02514) has the rounds of `paper`, and a cache of branches at the edge.
#
# While a round is away the edge extends the chain, and in the same batched steps it drafts
# branches: continuations of other tokens at each depth of the round, more of them near its
# start. A recovered token with which a branch begins is a *hit*: the next round is looked up,
# as far as the branch goes. Each rejection still takes a round trip.
#
# Where the paper leaves a detail open, the arm has the fastest variant:
#
# - The number of branches by depth falls with the answer's own acceptance, known beforehand.
# - Each step extends every branch by a token, in the time that the device takes to read the
#   chain's token and one of each branch together. The first step begins when the round is sent.
# - A hit ends the running step. The rest of a branch that is too short for a round is drafted.
# - At temperature 1 the edge ranks tokens with the noise that it shares with the target.

ROUNDING: Final = 1e-9
"""A step counts even if it ends late by this share of a step: sums of times are inexact."""


def branches_by_depth(branches: int, gamma: int, acceptance: float) -> list[int]:
    """Return the number of branches at each of gamma + 1 depths, including the bonus token's,
    in proportion to acceptance ** depth, rounded by D'Hondt's method."""
    counts = [0] * (gamma + 1)
    for _ in range(branches):
        shares = [acceptance**depth / (count + 1) for depth, count in enumerate(counts)]
        counts[shares.index(max(shares))] += 1
    return counts


class CachingEdge(Edge):
    """This edge looks up the next round after a rejection, if it has drafted it."""

    def __init__(
        self,
        clock: Clock,
        source: Source,
        machine: DraftMachine,
        draft_s: Curve,
        *,
        gamma: int,
        branches: int,
        drafting: Callable[[float], None],
        done: Action,
    ) -> None:
        """Set up. gamma: draft tokens of a round. branches: drafted while a round is away."""
        super().__init__(clock, source, machine, draft_s, drafting=drafting, done=done)
        self._gamma = gamma
        self._branches = branches_by_depth(branches, gamma, source.acceptance)
        self._batch_s = draft_s.of(1 + branches)
        self._round_start, self._sent_s = 0, 0.0
        self._epoch = 0
        self._cached_end = 0
        """The cache contains draft tokens up to this position."""

        self._first_epoch = 0
        """A hit ended the steps of earlier epochs."""

    def _send(self, messages: Sequence[Pushed]) -> None:
        for message in messages:
            if isinstance(message, Draft):
                self._round_start, self._sent_s = message.start, self._clock.now_s
        super()._send(messages)

    def _act(self) -> None:
        session = self.machine.session
        if session.epoch != self._epoch:
            self._epoch = session.epoch
            self._look_up(len(session.committed) - 1)
        super()._act()

    def _look_up(self, rejected: int) -> None:
        """Take the branch that begins with the recovered token at `rejected`, if there is one.

        A round has one more token if its predecessor was confirmed before the round was judged;
        as many branches follow that token as the bonus token.
        """
        depth, self._cached_end = min(rejected - self._round_start, self._gamma), 0
        if self._source.ranks[rejected] < self._branches[depth]:
            self._cached_end = rejected + 1 + self._steps_away()
            self._busy, self._first_epoch = False, self._epoch

    def _steps_away(self) -> int:
        """Return the number of tokens that each branch got since the round was sent."""
        away_s = self._clock.now_s - self._sent_s
        return min(self._gamma, int(away_s / self._batch_s + ROUNDING))

    def _step_s(self, step: DraftStep, unread: int) -> float:
        if len(step.context) < self._cached_end:
            return 0.0
        if self.machine.session.in_flight and self._steps_away() < self._gamma:
            return self._batch_s
        return super()._step_s(step, unread)

    def _drafted(self, step: DraftStep, tokens: Sequence[DraftToken]) -> None:
        if step.epoch >= self._first_epoch:
            super()._drafted(step, tokens)
