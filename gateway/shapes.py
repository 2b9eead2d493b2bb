"""OpenAI's two response shapes: chat completions, and the older completions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from gateway.ports import UNLIKELY, FinishReason
from gateway.reading import Entry

Json = dict[str, object]


class Shape(Protocol):
    prefix: str
    """Of the completion's id."""

    object: str
    chunk_object: str

    def opening(self) -> Json | None:
        """The first streamed choice, before any text; None if this shape has none."""
        ...

    def piece(self, text: str, entries: Sequence[Entry] | None) -> Json:
        """A streamed choice that carries text."""
        ...

    def ending(self, finish: FinishReason) -> Json:
        """The last streamed choice."""
        ...

    def whole(
        self, text: str, entries: Sequence[Entry] | None, finish: FinishReason | None
    ) -> Json:
        """A choice that was not streamed."""
        ...


class ChatShape:
    prefix = "chatcmpl-"
    object = "chat.completion"
    chunk_object = "chat.completion.chunk"

    def opening(self) -> Json:
        delta = {"role": "assistant", "content": ""}
        return {"delta": delta, "logprobs": None, "finish_reason": None}

    def piece(self, text: str, entries: Sequence[Entry] | None) -> Json:
        delta = {"content": text}
        return {"delta": delta, "logprobs": _content(entries), "finish_reason": None}

    def ending(self, finish: FinishReason) -> Json:
        return {"delta": {}, "logprobs": None, "finish_reason": finish}

    def whole(
        self, text: str, entries: Sequence[Entry] | None, finish: FinishReason | None
    ) -> Json:
        message = {"role": "assistant", "content": text, "refusal": None}
        return {"message": message, "logprobs": _content(entries), "finish_reason": finish}


class CompletionShape:
    prefix = "cmpl-"
    object = "text_completion"
    chunk_object = "text_completion"

    def opening(self) -> None:
        return None

    def piece(self, text: str, entries: Sequence[Entry] | None) -> Json:
        return self.whole(text, entries, None)

    def ending(self, finish: FinishReason) -> Json:
        return self.whole("", None, finish)

    def whole(
        self, text: str, entries: Sequence[Entry] | None, finish: FinishReason | None
    ) -> Json:
        return {"text": text, "logprobs": _columns(entries), "finish_reason": finish}


def _content(entries: Sequence[Entry] | None) -> Json | None:
    if entries is None:
        return None
    return {"content": [_row(entry) for entry in entries], "refusal": None}


def _row(entry: Entry) -> Json:
    top = [_token(piece, logprob) for piece, logprob in entry.top]
    return {**_token(entry.piece, entry.logprob), "top_logprobs": top}


def _token(piece: bytes, logprob: float) -> Json:
    text = piece.decode("utf-8", "backslashreplace")
    return {"token": text, "logprob": _finite(logprob), "bytes": list(piece)}


def _columns(entries: Sequence[Entry] | None) -> Json | None:
    if entries is None:
        return None
    return {
        "tokens": [_name(entry.piece) for entry in entries],
        "token_logprobs": [_finite(entry.logprob) for entry in entries],
        "top_logprobs": [_likely(entry) for entry in entries],
        "text_offset": [entry.offset for entry in entries],
    }


def _likely(entry: Entry) -> Json | None:
    """The most likely tokens and, always, the one said; None if none were asked for."""
    if not entry.top:
        return None
    named: Json = {}
    for piece, logprob in (*entry.top, (entry.piece, entry.logprob)):
        named.setdefault(_name(piece), _finite(logprob))
    return named


def _name(piece: bytes) -> str:
    """OpenAI's older way to write a token that is no text by itself: bytes:\\xe2\\x82."""
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in piece)


def _finite(logprob: float) -> float:
    return max(logprob, UNLIKELY)
