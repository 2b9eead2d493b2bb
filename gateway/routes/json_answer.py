"""Answers in one JSON body."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.responses import Response
from starlette.types import Receive

from gateway.account import Account
from gateway.choice_stream import ChoiceStream, cancel_on_disconnect, merge
from gateway.detokenise import TextDelta
from gateway.responses import json_response
from gateway.routes.answer import Answer, Json, statistics_fields


async def json_answer(
    answer: Answer, streams: Sequence[ChoiceStream], account: Account, receive: Receive
) -> Response:
    """Answer when all streams have ended. Raises ApiError, and ClientGone on a disconnect."""
    read: list[list[TextDelta]] = [[] for _ in streams]

    async def emit(index: int, delta: TextDelta) -> None:
        account.count(index, delta)
        read[index].append(delta)

    await cancel_on_disconnect(receive, lambda: merge(streams, emit))
    choices = [{"index": i, **_choice(answer, deltas)} for i, deltas in enumerate(read)]
    body = answer.body(choices, chunk=False)
    return json_response({**body, "usage": account.usage(), **statistics_fields(account)})


def _choice(answer: Answer, deltas: Sequence[TextDelta]) -> Json:
    text = "".join(delta.text for delta in deltas)
    entries = [entry for delta in deltas for entry in delta.entries]
    return answer.choice(text, entries, deltas[-1].finish)
