"""The JSON of an answer: what chat completions and completions share, and where they differ."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from starlette.responses import Response
from starlette.types import Receive

from picospec.gateway.accounts.account import Account
from picospec.gateway.errors import ApiError
from picospec.gateway.http.client import connected
from picospec.gateway.http.responses import json_response
from picospec.gateway.output.choice_stream import ChoiceStream, together
from picospec.gateway.output.detokenise import Finish, LogprobEntry, TextDelta
from picospec.gateway.output.message import joined
from picospec.gateway.ports import UNLIKELY
from picospec.gateway.watching import Spans, Told

Json = dict[str, object]
Entries = Sequence[LogprobEntry]


@dataclass(frozen=True, slots=True)
class Answer(ABC):
    """The answer to one request. Each method returns a choice, without its index."""

    id_prefix: ClassVar[str]
    object: ClassVar[str]
    chunk_object: ClassVar[str]

    id: str
    created: int
    """Unix time, in seconds."""

    model: str
    wants_logprobs: bool
    fingerprint: str | None = None
    """OpenAI calls it `system_fingerprint`; not every answer has one."""

    def body(self, choices: Sequence[Json], *, chunk: bool) -> Json:
        """Return the whole body, or that of one chunk of a stream."""
        body: Json = {
            "id": self.id,
            "object": self.chunk_object if chunk else self.object,
            "created": self.created,
            "model": self.model,
            "choices": choices,
        }
        if self.fingerprint is not None:
            body["system_fingerprint"] = self.fingerprint
        return body

    def first_chunk(self, delta: TextDelta) -> Json | None:
        """Return what a choice begins with, before its first delta, if the API has that."""
        return None

    def chunks(self, delta: TextDelta) -> list[Json]:
        """Return the chunks of a delta, without its finish."""
        shows = delta.text or delta.entries
        return [self.text_chunk(delta.text, delta.entries)] if shows else []

    def spans(self, delta: TextDelta, told: Told) -> list[Spans]:
        """Return the origins of what each of its chunks shows."""
        return [told.text] if delta.text or delta.entries else []

    def error(self, error: ApiError) -> Mapping[str, Mapping[str, str | None]]:
        """Return the event of an error in a stream."""
        return error.body()

    @abstractmethod
    def text_chunk(self, text: str, entries: Entries) -> Json: ...

    @abstractmethod
    def last_chunk(self, finish: Finish) -> Json: ...

    @abstractmethod
    def choice(self, whole: TextDelta) -> Json:
        """Return a choice that is not streamed."""


async def json_answer(
    answer: Answer, streams: Sequence[ChoiceStream], account: Account, receive: Receive
) -> Response:
    """Answer when all streams have ended. Raises ApiError, and ClientGone on a disconnect."""
    read: list[list[TextDelta]] = [[] for _ in streams]
    async with connected(receive), together(streams) as deltas:
        async for index, delta in deltas:
            account.count(index, delta)
            read[index].append(delta)
    choices = [{"index": i, **answer.choice(_joined(deltas))} for i, deltas in enumerate(read)]
    body = answer.body(choices, chunk=False)
    return json_response({**body, "usage": account.usage(), **account.extensions()})


def _joined(deltas: Sequence[TextDelta]) -> TextDelta:
    """Return all that a client gets of a choice as one delta."""
    parsed = [delta.parsed for delta in deltas if delta.parsed is not None]
    return TextDelta(
        text="".join(delta.text for delta in deltas),
        tokens=sum(delta.tokens for delta in deltas),
        entries=tuple(entry for delta in deltas for entry in delta.entries),
        finish=deltas[-1].finish,
        statistics=deltas[-1].statistics,
        parsed=joined(parsed) if parsed else None,
        stop=deltas[-1].stop,
    )


def finite(logprob: float) -> float:
    """Return UNLIKELY for minus infinity, which JSON cannot express."""
    return max(logprob, UNLIKELY)
