"""An edge reads the tokens of an answer as vLLM's own parser of the family does, however the
answer is cut: reasoning, content, calls and the finish reason, streamed and whole.

gpt-oss has its own vocabulary here, which vLLM brings; no weights are needed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Literal

import pytest

from gateway.output.detokenise import Detokeniser, StopConditions
from gateway.output.output_format import CallRules, OutputFormats
from gateway.ports import Delta, Statistics
from tests.gateway.output.reading import TOOLS, Read
from tests.gateway.scripted import ByteTokenizer

pytestmark = pytest.mark.vllm
Finish = Literal["stop", "length"]


@pytest.fixture(autouse=True, scope="module")
def installed() -> None:
    pytest.importorskip("vllm")


@cache
def encoding() -> Any:
    from vllm.entrypoints.openai.parser.harmony_utils import get_encoding

    return get_encoding()


class Harmony(ByteTokenizer):
    """The vocabulary of gpt-oss."""

    def encode(self, text: str, *, special: bool = True, begin: bool = True) -> list[int]:
        return encoding().encode(text, allowed_special="all" if special else set(),
                                 disallowed_special=())

    def piece(self, token: int, special: bool = False) -> bytes:
        hidden = encoding().is_special_token(token)
        return b"" if hidden else bytes(encoding()._inner.decode_bytes([token]))

    def decode(self, ids: Sequence[int]) -> str:
        return encoding().decode(ids)

@dataclass(frozen=True)
class Said:
    """What a client gets of an answer."""

    reasoning: str
    content: str
    calls: list[tuple[str, str]]
    finish: str


def edges(ids: Sequence[int], finish: Finish, sizes: int, tools: Any) -> Said:
    """Return what an edge makes of tokens that come so many at a time."""
    tokenizer = Harmony(template="<|channel|>analysis")
    stops = frozenset(encoding().stop_tokens_for_assistant_actions())
    make = partial(Detokeniser, stop=StopConditions(stops))
    reader, read = OutputFormats().find(tokenizer).reader(make, (), CallRules(tools)), Read()
    for at in range(0, len(ids), sizes):
        last = at + sizes >= len(ids)
        delta = Delta(tuple(ids[at : at + sizes]), finish=finish if last else None,
                      statistics=Statistics() if last else None)
        shown = reader.read(delta)
        assert shown.parsed is not None
        read.add(shown.text, shown.parsed)
    calls = [(call.name, call.arguments) for call in read.calls]
    return Said(read.reasoning, read.content, calls, str(shown.finish))


def parser(tools: Any) -> Any:
    from vllm.parser import ParserManager
    cls = ParserManager.get_parser("openai" if tools else None, "openai_gptoss", enable_auto_tools=True, is_harmony=True)
    return cls(Harmony())

def request(tools: Any) -> Any:
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    functions = [{"type": "function", "function": {"name": n, "parameters": s}} for n, s in tools.items()]
    return ChatCompletionRequest.model_validate({"model": "m", "messages": [{"role": "user", "content": "hi"}]} | ({"tools": functions} if tools else {}))

def vllms(ids: Sequence[int], finish: Finish, tools: Any) -> Said:
    """Return what vLLM makes of a whole answer."""
    reasoning, content, calls = parser(tools).parse("", request(tools), True, ids)
    named = [(call.name, call.arguments) for call in calls or ()]
    return Said(reasoning or "", content or "", named, "tool_calls" if named and finish == "stop" else finish)

def vllms_stream(ids, finish, sizes, tools) -> Said:
    p, r, read, calls = parser(tools), request(tools), Said("", "", [], ""), []
    reasoning = content = ""
    for at in range(0, len(ids), sizes):
        d = p.parse_delta("", list(ids[at:at+sizes]), r, finished=at + sizes >= len(ids))
        if d is None: continue
        reasoning += d.reasoning or ""
        content += d.content or ""
        for c in d.tool_calls or ():
            if c.function.name: calls.append([c.function.name, ""])
            calls[c.index][1] += c.function.arguments or ""
    return Said(reasoning, content, [tuple(c) for c in calls], "tool_calls" if calls and finish == "stop" else finish)
