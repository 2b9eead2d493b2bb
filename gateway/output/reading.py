"""Reads text that comes piece by piece: any text, values in brackets, and reasoning."""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

from gateway.grammars import Tags
from gateway.output.detokenise import overlap
from gateway.output.message import ParsedMessage

# Lets a parser read text that comes piece by piece as if it were complete.
#
# A parser is a generator. When it needs more text, it yields, and the caller that feeds the
# text resumes it. So a parser is a sequence of steps, and does not depend on where the pieces
# end.

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


# Finds where a value ends in text that comes piece by piece, by its brackets and strings.


@dataclass(frozen=True, slots=True)
class Notation:
    """Defines the brackets and strings of a language."""

    closers: Mapping[str, str]
    """Maps each bracket and quotation mark to the character that closes it."""

    plain: re.Pattern[str]
    """Matches a run of characters that may be between brackets and strings."""


JSON: Final = Notation({"{": "}", "[": "]", '"': '"'}, re.compile(r"[\s\w,:.+-]*"))
PYTHON: Final = Notation(
    {"(": ")", "{": "}", "[": "]", '"': '"', "'": "'"}, re.compile(r"[^\[\](){}\"']*")
)
_SCALAR: Final = re.compile(r"[\w.+-]*")
_QUOTED: Final = {'"': re.compile(r'[^"\\]*'), "'": re.compile(r"[^'\\]*")}


class Extent:
    """Finds the end of a value that begins with a bracket or a quotation mark."""

    def __init__(self, notation: Notation) -> None:
        self._notation = notation
        self._closers: list[str] = []
        """These characters close the open brackets and strings, the innermost last."""

        self.ended = False
        self.broken = False
        """True if the value ended at a character that cannot be part of it."""

    def scan(self, text: str, at: int) -> int:
        """Return the index up to which `text`, from `at` on, belongs to the value.

        An escape in a string is left unread until both its characters have come.
        """
        while at < len(text) and not self.ended:
            closer = self._closers[-1] if self._closers else ""
            quoted = closer in _QUOTED
            plain = (_QUOTED[closer] if quoted else self._notation.plain).match(text, at)
            at = plain.end() if plain else at
            if quoted and text.startswith("\\", at):
                if at + 1 == len(text):
                    break
                at += 2
            elif at < len(text):
                self._nest(text[at], closer, quoted)
                at += not self.broken
        return at

    def _nest(self, char: str, closer: str, quoted: bool) -> None:
        if char == closer:
            self._closers.pop()
        elif not quoted and char in self._notation.closers:
            self._closers.append(self._notation.closers[char])
        else:
            self.broken = True
        self.ended = self.broken or not self._closers


def read_value(text: Incoming, notation: Notation = JSON) -> Steps[str]:
    """Read a value, which may be a number or a word, and return its text."""
    start = text.at
    if (yield from text.peek()) not in notation.closers:
        return (yield from text.match(_SCALAR))
    extent = Extent(notation)
    while True:
        text.at = extent.scan(text.held, text.at)
        if extent.ended and not extent.broken:
            return text.held[start : text.at]
        if extent.broken or text.ended:
            raise Malformed("the value does not end")
        yield


def stream_value(text: Incoming, emit: Callable[[str], None]) -> Steps[None]:
    """Pass a JSON object on as it comes. Raises Malformed after passing on all that may belong
    to the object."""
    extent = Extent(JSON)
    while True:
        text.at = extent.scan(text.held, text.at)
        if text.ended and not extent.ended:
            text.at = len(text.held)
        emit(text.consume())
        if extent.ended or text.ended:
            break
        yield
    if extent.broken or not extent.ended:
        raise Malformed("the value does not end")


# Reads reasoning, which a model writes between two tags before its answer.
#
# Some templates open the reasoning in the prompt, so that the model only writes its end.

_TAIL_TOKENS: Final = 8
"""This many tokens hold an opening tag that is not a single token, and the space after it."""


_KNOWN: Final = (Tags("<think>", "</think>"), Tags("[THINK]", "[/THINK]"))


def tags_of(template: str) -> Tags | None:
    """Return the tags in a chat template; None without any."""
    return next((t for t in _KNOWN if t.opening in template or t.closing in template), None)


def is_opened(tags: Tags, prompt: Sequence[int], piece: Callable[[int], bytes]) -> bool:
    """Return True if the prompt ends within reasoning. piece: spells the tags' tokens, too."""
    tail = b"".join(piece(token) for token in prompt[-_TAIL_TOKENS:])
    return tail.decode("utf-8", "replace").rstrip().endswith(tags.opening)


def read_reasoning(
    text: Incoming, out: ParsedMessage, tags: Tags, *, opened: bool
) -> Steps[None]:
    """Pass reasoning on, without the space around it, if the text begins with reasoning."""
    out.thinking = opened
    yield from text.space()
    if not (yield from text.take(tags.opening)) and not opened:
        text.at = 0
        return
    out.thinking = True
    yield from text.space()
    text.consume()
    yield from _until_closed(text, out, tags.closing)
    out.thinking = False
    yield from text.space()
    text.consume()


def _until_closed(text: Incoming, out: ParsedMessage, closing: str) -> Steps[None]:
    while True:
        end, literal = text.find_literal((closing,))
        out.reasoning(text.consume(len(text.held[:end].rstrip())), text.consumed)
        if literal:
            yield from text.space()
            yield from text.expect(closing)
            return
        if text.ended:
            text.consume(len(text.held))
            return
        yield
