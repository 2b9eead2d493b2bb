"""Answers in one JSON body."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from starlette.responses import Response
from starlette.types import Receive

from gateway.account import Account
from gateway.choice_stream import ChoiceStream, cancel_on_disconnect, merge
from gateway.detokenise import LogprobEntry, TextDelta
from gateway.ports import FinishReason
from gateway.responses import json_response
from gateway.routes.answer import Answer, statistics_fields


@dataclass(slots=True)
class _Choice:
    texts: list[str] = field(default_factory=list)
    entries: list[LogprobEntry] = field(default_factory=list)
    finish: FinishReason | None = None


async def json_answer(
    answer: Answer, streams: Sequence[ChoiceStream], account: Account, receive: Receive
) -> Response:
    """Answer when all streams have ended. Raises ApiError, and ClientGone on a disconnect."""
    choices = [_Choice() for _ in streams]

    async def emit(index: int, delta: TextDelta) -> None:
        account.count(index, delta)
        choices[index].texts.append(delta.text)
        choices[index].entries.extend(delta.entries)
        choices[index].finish = delta.finish

    await cancel_on_disconnect(receive, lambda: merge(streams, emit))
    formatted = [
        {
            "index": index,
            **answer.choice("".join(choice.texts), choice.entries, choice.finish),
        }
        for index, choice in enumerate(choices)
    ]
    body = answer.body(formatted, chunk=False)
    return json_response({**body, "usage": account.usage(), **statistics_fields(account)})
