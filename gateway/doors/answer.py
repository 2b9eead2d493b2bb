"""How an answer is written: what each door has of its own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from starlette.responses import Response
from starlette.types import Receive

from picospec.gateway.accounts.account import Account
from picospec.gateway.errors import ApiError
from picospec.gateway.http.client import connected
from picospec.gateway.http.responses import json_response
from picospec.gateway.output.choice_stream import ChoiceStream, together
from picospec.gateway.output.detokenise import LogprobEntry, TextDelta
from picospec.gateway.output.message import joined
from picospec.gateway.ports import UNLIKELY

Json = dict[str, object]
Entries = Sequence[LogprobEntry]


@dataclass(frozen=True, slots=True)
class Heading:
    """What is known of an answer before its first token."""

    id: str
    created: int
    """Unix time, in seconds."""

    model: str
    choices: int
    account: Account
    """It has counted a delta before `events` gets that delta, so that usage is up to date."""

    fingerprint: str | None = None
    """OpenAI calls it `system_fingerprint`; not every answer has one."""


class Answer(ABC):
    """Writes one answer, streamed or whole."""

    media_type: ClassVar[str] = "text/event-stream; charset=utf-8"
    """The type of the stream."""

    keep_alive: ClassVar[bytes] = b": keep-alive\n\n"
    """What is sent while nothing else is; b"" for nothing. Clients skip a comment, as the
    standard of server-sent events says."""

    def waiting(self) -> bytes:
        """Return what is sent while nothing else is."""
        return self.keep_alive

    @abstractmethod
    def events(self, index: int, delta: TextDelta) -> bytes:
        """Return what the stream has for the next delta of choice `index`."""

    @abstractmethod
    def end(self) -> bytes:
        """Return what the stream has after all choices have finished."""

    @abstractmethod
    def failure(self, error: ApiError) -> bytes:
        """Return what the stream ends with after an error."""

    @abstractmethod
    def whole(self, choices: Sequence[TextDelta]) -> object:
        """Return the answer that is not streamed. choices: each as one delta."""


AnswerMaker = Callable[[Heading], Answer]


async def json_answer(
    answer: Answer, streams: Sequence[ChoiceStream], account: Account, receive: Receive
) -> Response:
    """Answer when all streams have ended. Raises ApiError, and ClientGone on a disconnect."""
    read: list[list[TextDelta]] = [[] for _ in streams]
    async with connected(receive), together(streams) as deltas:
        async for index, delta in deltas:
            account.count(index, delta)
            read[index].append(delta)
    return json_response(answer.whole([_joined(deltas) for deltas in read]))


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
