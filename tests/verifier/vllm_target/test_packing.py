"""Messages arrive at the core and at the API server as they were sent, numbers included."""

from __future__ import annotations

from typing import get_args

import pytest

from speculation.messages import (
    CachedPromptTokens,
    Commit,
    Draft,
    Finish,
    Message,
    Pushed,
    Recovered,
    Redraw,
    Reject,
    TokenLogprob,
    Totals,
)
from verifier.target import Reply
from verifier.vllm_target.packing import packed, unpacked

MESSAGES: list[Message] = [
    Draft(3, 2**40, 1, (5, 2**31), (65535, 1), pauses=True),
    Recovered(1, 2, 3),
    Redraw(1, 2, 3),
    CachedPromptTokens(9),
    Commit(1, 2, (3, 4), 1, 1, 0.1, 1 / 3, (TokenLogprob(-0.1, ((3, -2.5),)),) * 2),
    Reject(1, 2, 0, ((3, 0.1), (4, 0.2)), 0.7, ((5, 1e-30),)),
    Finish("stop", Totals(1, 2, 3, 4, 5)),
]


@pytest.mark.parametrize("message", MESSAGES)
def test_a_message_arrives_as_it_was(message: Message) -> None:
    assert repr(unpacked(packed(message))) == repr(message)


def test_every_message_of_the_two_processes_is_among_them() -> None:
    assert {type(each) for each in MESSAGES} == {*get_args(Pushed), *get_args(Reply)}
