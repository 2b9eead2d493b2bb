"""Lets a parser read text that comes piece by piece as if it were complete.

A parser is a generator. When it needs more text, it yields, and the caller that feeds the
text resumes it. So a parser is a sequence of steps, and does not depend on where the pieces
end.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator
from typing import Final, TypeVar

from gateway.output.detokenise import overlap

T = TypeVar("T")
Steps = Generator[None, None, T]
"""A parser, or a part of a parser, returns T, and yields whenever it needs more text."""

_SPACE: Final = re.compile(r"\s*")


class Malformed(Exception):
    """Raised if the text is not in the required format. The text read so far is still held."""


class Incoming:
    """Holds the text that is not consumed yet, and a position in it.

    The text before the position was read. Until `consume` it may still be given back, because a
    parser may find out late that something only looked like a call.
    """

    def __init__(self) -> None:
        self.held = ""
        self.at = 0
        """This is the position; `held[at:]` was not read yet."""

        self.ended = False
        """True if no more text comes, and the parser was resumed after the last."""

        self.consumed = 0
        """This many characters of the whole text come before `held`."""

    def feed(self, text: str) -> None:
        self.held += text

    def consume(self, count: int | None = None) -> str:
        """Remove and return `count` characters of `held`, or else all that were read."""
        count = self.at if count is None else count
        text, self.held = self.held[:count], self.held[count:]
        self.consumed += count
        self.at = max(0, self.at - count)
        return text

    def more(self) -> Steps[bool]:
        """Wait for a character at the position; return True if there is one."""
        while self.at == len(self.held) and not self.ended:
            yield
        return self.at < len(self.held)

    def peek(self) -> Steps[str]:
        """Return the next character, or "" at the end of the text."""
        return self.held[self.at] if (yield from self.more()) else ""

    def match(self, run: re.Pattern[str]) -> Steps[str]:
        """Read and return the longest run of characters that the pattern repeats."""
        start = self.at
        while True:
            match = run.match(self.held, self.at)
            self.at = match.end() if match else self.at
            if self.at < len(self.held) or self.ended:
                return self.held[start : self.at]
            yield

    def space(self) -> Steps[str]:
        return (yield from self.match(_SPACE))

    def take(self, literal: str) -> Steps[bool]:
        """Read `literal` if it comes next; return True if it did."""
        while True:
            here = self.held[self.at : self.at + len(literal)]
            if here == literal:
                self.at += len(literal)
                return True
            if self.ended or not literal.startswith(here):
                return False
            yield

    def expect(self, literal: str) -> Steps[None]:
        if not (yield from self.take(literal)):
            raise Malformed(f"expected {literal}")

    def until(self, literal: str) -> Steps[str]:
        """Read and return the text before `literal`. Raises Malformed if it never comes."""
        start = self.at
        while (place := self.held.find(literal, self.at)) < 0:
            self.at = max(self.at, len(self.held) - len(literal) + 1)
            if self.ended:
                raise Malformed(f"expected {literal}")
            yield
        self.at = place
        return self.held[start:place]

    def pass_on(
        self,
        literals: tuple[str, ...],
        emit: Callable[[str, int], None],
        *,
        strips: bool = False,
    ) -> Steps[bool]:
        """Emit the text before the first of `literals`, each piece with the position at which
        the piece ends; return True if a literal was found. A possible beginning is withheld.

        strips: space is withheld, too, and stays unread if a literal follows.
        """
        while True:
            end, literal = self.find_literal(literals)
            if strips and (literal or not self.ended):
                end = len(self.held[:end].rstrip())
            emit(self.consume(end), self.consumed)
            if literal or self.ended:
                return literal
            yield

    def find_literal(self, literals: tuple[str, ...]) -> tuple[int, bool]:
        """Return the index up to which `held` has no literal, and whether one begins there."""
        places = [at for literal in literals if (at := self.held.find(literal)) >= 0]
        if places:
            return min(places), True
        keep = max((overlap(self.held, literal) for literal in literals), default=0)
        return len(self.held) - keep * (not self.ended), False
