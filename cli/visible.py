"""Text of a service or a model, made harmless to a terminal."""

from __future__ import annotations

from typing import Final

_ORDERS: Final = {*range(0x20), *range(0x7F, 0xA0)} - set(map(ord, "\n\t"))
_MARKS: Final = {order: "\ufffd" for order in _ORDERS} | {ord("\r"): " "}


def visible(text: str) -> str:
    """Return the text with a mark in place of each control character (C0, C1) but newline and
    tab. By these a terminal would fill the clipboard, clear the screen or change its title. The
    length stays, because spans of the text are counted in characters."""
    return text.translate(_MARKS)
