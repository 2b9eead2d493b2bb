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
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from itertools import count, takewhile
from random import Random
from typing import Any, Final, Protocol

from bench.link import Path
from bench.simulator.clock import Clock, Line
from bench.simulator.edge import Answer
from bench.simulator.hosts import World
from bench.simulator.source import Source
from local_models.llama_cpp.prefix import common_prefix
from speculation.messages import Commit, Down
from speculation.model_facts import TokenId

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
    """A rival proposes at most this many tokens a pass, by a Proposer for each client; none
    means the target alone."""

    tokens: int = 0
    make: Callable[[], Proposer] = lambda: Head(0.0)
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
    proposer: Proposer
    down: Line
    done: int = 0
    proposed: Sequence[TokenId] = ()

    @property
    def left(self) -> int:
        return len(self.source.tokens) - self.done


class Engine:
    """vLLM with speculation."""

    def __init__(self, clock: Clock, world: World, speculation: Speculation) -> None:
        self.answers: list[Answer] = []
        self._clock, self._hosts, self._rows = clock, world.hosts, world.rows
        self._speculation = speculation
        self._requests: list[_Request] = []
        self._running = False

    def ask(self, sources: Sequence[Source], paths: Callable[[], Path]) -> None:
        """Ask for one source after another. paths: returns a direction of the client's link."""
        self._ask(list(sources), paths, self._speculation.make())

    def _ask(self, left: list[Source], paths: Callable[[], Path], proposer: Proposer) -> None:
        if not left:
            return
        source, up = left.pop(0), paths()
        answer = Answer(source, self._clock.now_s)

        def receive(message: Down) -> None:
            if isinstance(message, Commit):
                answer.add(self._clock.now_s, len(message.tokens))
                if answer.tokens == len(source.tokens):
                    self.answers.append(answer)
                    self._ask(left, paths, proposer)

        request = _Request(source, proposer, Line(self._clock, paths(), receive))
        self._clock.at(up.arrival(self._clock.now_s, 0), partial(self._receive, request))

    def _receive(self, request: _Request) -> None:
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
            request.proposed = request.proposer.propose(most) if most > 0 else ()
            room -= len(request.proposed)
        rows = sum(1 + len(request.proposed) for request in decoding)
        pass_s = hosts.pass_s.of(rows) if rows else 0.0
        pass_s += sum(len(r.source.prompt) * hosts.prefill_s for r in started if not r.done)
        if rows:
            pass_s += spec.tokens * spec.pass_share * hosts.pass_s.of(1)
        self._clock.after(pass_s, partial(self._end, started))

    def _end(self, started: Sequence[_Request]) -> None:
        self._running = False
        for request in started:
            answer, at = request.source.tokens, request.done
            accepted = common_prefix(request.proposed, answer[at:])
            tokens = tuple(answer[at : at + accepted + 1])
            request.done += len(tokens)
            request.proposer.extend(tokens)
            request.down.send(Commit(0, at, tokens, accepted))
            if not request.left:
                self._requests.remove(request)
        self._start()
