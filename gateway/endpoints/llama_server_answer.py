"""Writes the answers of POST /completion and POST /infill."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Final

from gateway.endpoints.answer import Answer, Heading, Json, sent_event
from gateway.endpoints.endpoint import EndpointRequest
from gateway.endpoints.llama_server import NativeRequest
from gateway.endpoints.usage_fields import extensions_of
from gateway.output.detokenise import TextDelta

_ABSENT: Final = object()


def convert(body: NativeRequest) -> EndpointRequest:
    """Return what a request asks for: the request itself."""
    return EndpointRequest(body, "cmpl-", partial(NativeAnswer, body), body.unserved_options)


class NativeAnswer(Answer):
    """Writes one object for each choice, and in a stream also one for each piece of text."""

    def __init__(self, body: NativeRequest, heading: Heading) -> None:
        self._fields = body.response_fields
        self._heading = heading
        self._usage = heading.usage
        self._tokens = Counter[int]()

    def events(self, index: int, delta: TextDelta) -> bytes:
        self._tokens[index] += delta.tokens
        pieces = [self._piece(index, delta.text)] if delta.text else []
        if delta.finish is not None:
            pieces.append(self._last(index, "", delta))
        return b"".join(map(sent_event, pieces))

    def full_answer(self, choices: Sequence[TextDelta]) -> object:
        """Return the object of the choice, or all if there are several."""
        self._tokens.update({index: each.tokens for index, each in enumerate(choices)})
        shown = [self._last(i, each.text, each) for i, each in enumerate(choices)]
        return shown[0] if len(shown) == 1 else shown

    def _piece(self, index: int, text: str) -> Json:
        return {
            "index": index,
            "content": text,
            "stop": False,
            "tokens_predicted": self._tokens[index],
            "tokens_evaluated": self._usage.prompt_tokens,
        }

    def _last(self, index: int, text: str, delta: TextDelta) -> Json:
        ended_by = "limit" if delta.finish == "length" else "word" if delta.stop else "eos"
        answer = {
            **self._piece(index, text),
            "stop": True,
            "model": self._heading.model,
            "truncated": False,
            "stop_type": ended_by,
            "stopping_word": delta.stop or "",
            "tokens_cached": self._usage.prompt_tokens + self._tokens[index],
            **extensions_of(self._usage),
        }
        return _only(self._fields, answer) if self._fields else answer


def _only(paths: Sequence[str], answer: Json) -> Json:
    """Return a map from paths, such as "timings/prompt_n", to the fields at these paths."""
    values = {path: _at(path, answer) for path in paths}
    return {path: value for path, value in values.items() if value is not _ABSENT}


def _at(path: str, value: object) -> object:
    for name in path.split("/"):
        value = value.get(name, _ABSENT) if isinstance(value, Mapping) else _ABSENT
    return value
