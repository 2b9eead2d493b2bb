"""Writes what the answers of OpenAI's chat completions and completions share.

A stream has chunks, `data: {...}`, and ends with [DONE], or with `data: {"error": ...}`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import ClassVar, Final

from gateway.endpoints.answer import Answer, Entries, Heading, Json, sent_event
from gateway.endpoints.request import GenerationRequest
from gateway.endpoints.usage_fields import _speculation, extensions_of, usage_of
from gateway.output.detokenise import Finish, TextDelta
from gateway.watching import Report, Spans, Watch

_NO_REPORT: Final = Report({})


class ChunkAnswer(Answer):
    object: ClassVar[str]
    chunk_object: ClassVar[str]

    def __init__(self, request: GenerationRequest, heading: Heading) -> None:
        self.wants_logprobs = request.wanted_logprobs is not None
        self._heading = heading
        self._answer_usage = heading.usage
        self._usage = request.include_usage
        self._counts_along = request.counts_along
        self._watch = Watch() if request.is_watched else None
        self._begun: set[int] = set()  # choices that have a chunk
        self._ended = 0  # how many choices have finished

    def events(self, index: int, delta: TextDelta) -> bytes:
        return b"".join(map(sent_event, self._chunks(index, delta)))

    def end(self) -> bytes:
        last: Json = {}
        if self._usage:
            last |= {"usage": usage_of(self._answer_usage), **extensions_of(self._answer_usage)}
        if self._watch is not None:
            last["speculation"] = self._watch.totals() | _speculation(self._answer_usage)
        ends = [{**self._body([], chunk=True), **last}] if last else []
        return b"".join(map(sent_event, ends)) + b"data: [DONE]\n\n"

    def full_answer(self, choices: Sequence[TextDelta]) -> Json:
        shown = [{"index": i, **self.choice(choice)} for i, choice in enumerate(choices)]
        body = self._body(shown, chunk=False)
        return {
            **body,
            "usage": usage_of(self._answer_usage),
            **extensions_of(self._answer_usage),
        }

    def first_chunk(self, delta: TextDelta) -> Json | None:
        """Return the chunk before a choice's first delta; None if the API has no such chunk."""
        return None

    def chunks(self, delta: TextDelta, report: Report) -> list[tuple[Json, Spans]]:
        """Return the chunks of a delta, without its finish, each with the origins of its text,
        which are empty if the client does not watch."""
        shows = delta.text or delta.entries
        return [(self.text_chunk(delta.text, delta.entries), report.text)] if shows else []

    @abstractmethod
    def text_chunk(self, text: str, entries: Entries) -> Json: ...

    @abstractmethod
    def last_chunk(self, finish: Finish) -> Json: ...

    @abstractmethod
    def choice(self, whole: TextDelta) -> Json:
        """Return a choice that is not streamed, without its index."""

    def _chunks(self, index: int, delta: TextDelta) -> Iterator[Json]:
        first = self.first_chunk(delta) if index not in self._begun else None
        self._begun.add(index)
        if first is not None:
            yield self._indexed(index, first)
        watch = self._watch if delta.report is not None else None
        report = delta.report or _NO_REPORT
        for event in watch.take(index, report) if watch else ():
            yield {**self._chunked([]), "speculation": event}
        for chunk, spans in self.chunks(delta, report):
            of = {"spans": spans, "tokens": watch.count(index)} if watch else None
            shown = self._indexed(index, chunk)
            yield {**shown, "speculation": of} if of else shown
        if delta.finish is not None:
            self._ended += 1
            last = self._indexed(index, self.last_chunk(delta.finish))
            if self._watch is not None and (tokens := self._watch.count(index)):
                last["speculation"] = {"tokens": tokens}
            ends_answer = self._ended == self._heading.choices and not self._usage
            yield {**last, **extensions_of(self._answer_usage)} if ends_answer else last

    def _indexed(self, index: int, choice: Json) -> Json:
        return self._chunked([{"index": index, **choice}])

    def _chunked(self, choices: Sequence[Json]) -> Json:
        body = self._body(choices, chunk=True)
        usage = usage_of(self._answer_usage) if self._counts_along else None
        return {**body, "usage": usage} if self._usage else body

    def _body(self, choices: Sequence[Json], *, chunk: bool) -> Json:
        """Return the body of a whole answer, or of one chunk of a stream."""
        heading = self._heading
        body: Json = {
            "id": heading.id,
            "object": self.chunk_object if chunk else self.object,
            "created": heading.created,
            "model": heading.model,
            "choices": choices,
        }
        if heading.fingerprint is not None:
            body["system_fingerprint"] = heading.fingerprint
        return body
