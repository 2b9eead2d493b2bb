"""Reads reasoning, which a model writes between two tags before its answer.

Some templates open the reasoning in the prompt, so that the model only writes its end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from gateway.grammars import Tags
from gateway.output.message import ParsedMessage
from gateway.output.reading import Incoming, Steps

_TAIL_TOKENS: Final = 8
"""This many tokens hold an opening tag that is not a single token, and the space after it."""


_KNOWN: Final = (Tags("<think>", "</think>"), Tags("[THINK]", "[/THINK]"))

_DSML: Final = "<\uff5cDSML\uff5ctool_calls>"
"""DeepSeek V4, whose calls begin so, writes no space of its own around its reasoning."""


def tags_of(template: str) -> Tags | None:
    """Return the tags in a chat template; None without any."""
    tags = next((t for t in _KNOWN if t.opening in template or t.closing in template), None)
    return tags._replace(keeps_space=True) if tags and _DSML in template else tags


def is_opened(tags: Tags, prompt: Sequence[int], piece: Callable[[int], bytes]) -> bool:
    """Return True if the prompt ends within reasoning. piece: spells the tags' tokens, too."""
    tail = b"".join(piece(token) for token in prompt[-_TAIL_TOKENS:])
    return tail.decode("utf-8", "replace").rstrip().endswith(tags.opening)


def read_reasoning(
    text: Incoming, out: ParsedMessage, tags: Tags, *, opened: bool
) -> Steps[None]:
    """Pass reasoning on, if the text begins with reasoning, without the space around it. With
    `keeps_space`, only the space before the closing tag is left out, as in vLLM."""
    out.thinking = opened
    yield from text.space()
    if not (yield from text.take(tags.opening)):
        text.at = 0
        if not opened:
            return
    out.thinking = True
    if not tags.keeps_space:
        yield from text.space()
    text.consume()
    yield from _until_closed(text, out, tags.closing)
    out.thinking = False
    if not tags.keeps_space:
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
