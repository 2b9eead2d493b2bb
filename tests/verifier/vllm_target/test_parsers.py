"""An edge reads the tokens of an answer as vLLM's own parser of the family does, however the
answer is cut: reasoning, content, calls and finish reason, streamed and whole.

gpt-oss has its own vocabulary here, which vLLM brings, and DeepSeek V4 a made one; there are no
weights.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from gateway.output.detokenise import Detokeniser, StopConditions
from gateway.output.output_format import CallRules, OutputFormats
from gateway.ports import Delta, GatewayTokenizer, Statistics
from local_models.tokenizer_file import tokenizer_file
from tests.gateway.output.reading import TOOLS, Read, Tools, split
from tests.gateway.scripted import ByteTokenizer
from tests.verifier.vllm_target.markers import flags, model_with_markers

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("default")]


@pytest.fixture(autouse=True, scope="module")
def installed() -> None:
    pytest.importorskip("vllm")


@cache
def encoding() -> Any:
    from vllm.entrypoints.openai.parser.harmony_utils import get_encoding

    return get_encoding()


@dataclass(eq=False)
class GptOss(ByteTokenizer):
    """The vocabulary of gpt-oss, for both ends."""

    template: str = "<|channel|>analysis"

    def encode(self, text: str, *, special: bool = True, begin: bool = True) -> list[int]:
        allowed = "all" if special else set()
        ids: list[int] = encoding().encode(text, allowed_special=allowed, disallowed_special=())
        return ids

    def piece(self, token: int, special: bool = False) -> bytes:
        if encoding().is_special_token(token):
            return b""
        return bytes(encoding()._inner.decode_bytes([token]))

    def decode(self, ids: Sequence[int]) -> str:
        return str(encoding().decode(ids))


class Answer(NamedTuple):
    reasoning: str
    content: str
    calls: list[tuple[str, str]]
    finish: str


def edges(pieces: Sequence[Sequence[int]], finish: Any, tools: Tools) -> Answer:
    stops = StopConditions(frozenset(encoding().stop_tokens_for_assistant_actions()))
    return edge(GptOss(), stops, (), pieces, finish, tools)


def edge(
    tokenizer: GatewayTokenizer,
    stop: StopConditions,
    prompt: Sequence[int],
    pieces: Sequence[Sequence[int]],
    finish: Any,
    tools: Tools,
) -> Answer:
    make = partial(Detokeniser, stop=stop)
    reader = OutputFormats().find(tokenizer).reader(make, prompt, CallRules(tools))
    deltas = [Delta(tuple(piece)) for piece in pieces]
    deltas.append(Delta((), finish=finish, statistics=Statistics()))
    read, shown = Read(), [reader.read(delta) for delta in deltas]
    for each in shown:
        assert each.parsed is not None
        read.add(each.text, each.parsed)
    calls = [(call.name, call.arguments) for call in read.calls]
    return Answer(read.reasoning, read.content, calls, str(shown[-1].finish))


def request(tools: Tools) -> Any:
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest

    functions = [{"name": name, "parameters": schema} for name, schema in tools.items()]
    shown = [{"type": "function", "function": function} for function in functions]
    asked = {"messages": [{"role": "user", "content": "Hi"}], "tools": shown or None}
    return ChatCompletionRequest.model_validate({"model": "m", **asked})


def theirs(
    parser: Callable[[], Any],
    decode: Callable[[list[int]], str],
    pieces: Sequence[Sequence[int]],
    finish: str,
    tools: Tools,
    prompt: Sequence[int] = (),
) -> tuple[Answer, Answer]:
    """Return vLLM's whole answer, and the one that it streams in these pieces."""
    asked = request(tools)
    ids = [token for piece in pieces for token in piece]
    reasoning, content, calls = parser().parse(decode(ids), asked, True, ids)
    whole = [(call.name, call.arguments) for call in calls or ()]
    streaming, texts, streamed = parser(), ["", ""], list[list[str]]()
    for at, piece in enumerate(pieces):
        last = at == len(pieces) - 1
        text = decode([*piece])
        delta = streaming.parse_delta(text, [*piece], asked, [*prompt], finished=last)
        for i, text in enumerate((delta.reasoning, delta.content) if delta else ()):
            texts[i] += text or ""
        for call in delta.tool_calls or () if delta else ():
            streamed += [[call.function.name, ""]] if call.function.name else []
            streamed[call.index][1] += call.function.arguments or ""

    def ended(calls: Sequence[object]) -> str:  # as vLLM's server of chats decides
        return "tool_calls" if calls and finish == "stop" else finish

    return (
        Answer(reasoning or "", content or "", whole, ended(whole)),
        Answer(texts[0], texts[1], [(name, text) for name, text in streamed], ended(streamed)),
    )


def vllms(pieces: Sequence[Sequence[int]], finish: str, tools: Tools) -> tuple[Answer, Answer]:
    from vllm.parser import ParserManager

    named = "openai" if tools else None
    parsers = ParserManager.get_parser(named, "openai_gptoss", True, is_harmony=True)
    assert parsers is not None
    parser: Any = partial(parsers, GptOss())
    return theirs(parser, GptOss().decode, pieces, finish, tools)


def values(answer: Answer) -> Answer:
    """Return an answer whose arguments are spaced alike, if they are JSON."""
    return answer._replace(calls=[(name, _spaced(text)) for name, text in answer.calls])


def _spaced(text: str) -> str:
    try:
        return json.dumps(json.loads(text))
    except ValueError:
        return text


def in_one_line(answer: Answer) -> Answer:
    """Return an answer without line breaks: vLLM's streams have none between messages."""
    reasoning, content = (text.replace("\n", "") for text in answer[:2])
    return answer._replace(reasoning=reasoning, content=content)


THINKS = "<|channel|>analysis<|message|>"
SAYS = "<|channel|>final<|message|>"
NEXT = "<|end|><|start|>assistant"
CALLS = "<|channel|>commentary to=functions.weather <|constrain|>json<|message|>"
ANSWERS = [
    f"{THINKS}Think é 🙂.\n{NEXT}{SAYS}It is\n\ncold. <|return|>",
    f"{THINKS}Hm.{NEXT}<|channel|>commentary<|message|>Wait.{NEXT}{CALLS}"
    '{"city":"Ö"}<|call|>',
    f" to=functions.now<|channel|>commentary json<|message|>{{}}{NEXT}{CALLS}{{}}<|call|>",
    f"{THINKS}{NEXT}{THINKS} {NEXT}{SAYS}<|start|>b<|channel|>{NEXT}{SAYS}c",
    f"<|channel|>analysis to=python code<|message|>1{NEXT}<|channel|>final <|constrain|>json"
    f"<|message|>{{}}{NEXT}<|channel|>other<|message|>x{NEXT}<|channel|>commentary "
    "to=browser.open json<|message|>{}<|end|><|return|>",
    f"<|channel|>a b c d<|message|>x{NEXT}<|channel|> final<|message|>x{NEXT}<|message|>y",
    "No channel.",
]


@pytest.mark.parametrize("tools", [{}, TOOLS], ids=["none", "tools"])
@pytest.mark.parametrize("text", ANSWERS)
def test_gpt_oss_is_read_as_vllm_reads_it(text: str, tools: Tools) -> None:
    tokens = GptOss().encode(text)
    stops = encoding().stop_tokens_for_assistant_actions()
    malformed = text.startswith("<|channel|>a b")  # vLLM shows its header if the next is cut

    for end in [len(tokens)] if malformed else range(1, len(tokens) + 1):
        ids = tokens[:end]
        finish = "stop" if ids[-1] in stops else "length"
        for cuts in (range(end), [], [end // 2]):
            pieces = split(range(end), cuts)
            pieces = [[ids[at] for at in piece] for piece in pieces if piece]

            answer = edges(pieces, finish, tools)
            whole, streamed = vllms(pieces, finish, tools)

            assert values(answer) == values(whole)
            assert in_one_line(answer) == in_one_line(streamed)


BAR = "\uff5cDSML\uff5c"


def parameter(name: str, value: str, string: str = "true") -> str:
    return f'<{BAR}parameter name="{name}" string="{string}">{value}</{BAR}parameter>\n'


def calls(*called: tuple[str, str]) -> str:
    texts = [
        f'<{BAR}invoke name="{name}">\n{inside}</{BAR}invoke>\n' for name, inside in called
    ]
    return f"<{BAR}tool_calls>\n{''.join(texts)}</{BAR}tool_calls>"


OSLO = parameter("city", 'ba "de" <x>\n') + parameter("days", "3", "false")
DEEPSEEK = [
    "ba de\n\n" + calls(("weather", OSLO)) + " ki",
    "\n\n" + calls(("now", ""), ("weather", parameter("when", '{"a": [1]}', "false"))),
    calls(("weather", parameter("days", "3") + parameter("when", "True", "false"))),
    calls(("weather", parameter("city", "5", "false"))).replace("tool_calls>", "tool>", 1),
    calls(("now", "")).removeprefix(f"<{BAR}tool_calls>\n"),
    f"ba <b> <{BAR} de",
]


@pytest.mark.parametrize("before", ["", "so </think>"], ids=["content", "reasoning"])
@pytest.mark.parametrize("text", DEEPSEEK)
def test_deepseeks_calls_are_read_as_vllm_reads_them(
    text: str, before: str, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer
    from vllm.parser import ParserManager

    from verifier.vllm_target.serving.rendering import template_of

    model = model_with_markers(tmp_path / "model")
    template = template_of("DeepseekV4Renderer", flags("deepseek_v4"))
    tokenizer, encoder = (
        tokenizer_file(model, template).open(),
        AutoTokenizer.from_pretrained(model),
    )
    ids = tokenizer.encode(before + text, begin=False)
    opened = tokenizer.encode("<think>" if before else "</think>", begin=False)
    parsers = ParserManager.get_parser("deepseek_v4", "deepseek_v4", True)
    assert parsers is not None
    kwargs = {"thinking": bool(before)}
    parser: Any = partial(parsers, encoder, request(TOOLS).tools, chat_template_kwargs=kwargs)
    decode = partial(encoder.decode, skip_special_tokens=False)

    for end in range(1, len(ids) + 1):
        for pieces in ([[token] for token in ids[:end]], [ids[:end]]):
            answer = edge(tokenizer, StopConditions(), opened, pieces, "stop", TOOLS)
            both = theirs(parser, decode, pieces, "stop", TOOLS, opened)

            for each in map(values, both):
                assert answer.reasoning == each.reasoning
                assert answer.content.strip() == each.content.strip()
                # vLLM closes the arguments of a call that is cut, and shows space before it
                assert end < len(ids) or values(answer) == each


def test_what_a_text_spells_is_no_marker() -> None:
    ids = [*GptOss().encode(SAYS), *GptOss().encode("<|end|>\n<|start|>", special=False)]

    answer = edges([ids], "length", {})

    assert (
        answer
        == vllms([ids], "length", {})[0]
        == Answer("", "<|end|>\n<|start|>", [], "length")
    )
