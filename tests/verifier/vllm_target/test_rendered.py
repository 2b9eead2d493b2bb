"""Chats of families that vLLM renders by code have the same prompts and answers at an edge.

An edge reads answers as vLLM's parsers do, however they are cut. The models are tiny and
random, with DeepSeek V4's markers in a made vocabulary. For gpt-oss there is its own
vocabulary, which vLLM brings.
"""

from __future__ import annotations

import json
import re
from argparse import Namespace
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
import pytest_asyncio
import tokenizers
from starlette.routing import Route

from bench.pace.tiny_model import TOKENS
from gateway.endpoints.rendering import PATH, STOPS
from gateway.output.detokenise import Detokeniser, StopConditions
from gateway.output.output_format import CallRules, OutputFormats, choose
from gateway.ports import Delta, GatewayTokenizer, Statistics
from local_models.tokenizer_file import TokenizerFile, tokenizer_file
from tests.edge_agent.proxying import Upstream, proxying
from tests.gateway.output.reading import TOOLS, Read, Tools, split
from tests.gateway.scripted import ByteTokenizer, client_of
from tests.verifier.conftest import KEY
from tests.verifier.fake_target import FakeTarget
from tests.verifier.vllm_target.conftest import MODEL, vllm_serve
from verifier.app import build
from verifier.settings import load

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("default")]
IN_THE_MODULES_LOOP = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture(autouse=True, scope="module")
def installed() -> None:
    pytest.importorskip("vllm")


BAR, SPACE = "\uff5c", "\u2581"
DSML = f"{BAR}DSML{BAR}"
MARKERS = (
    f"<{BAR}begin{SPACE}of{SPACE}sentence{BAR}>",
    f"<{BAR}end{SPACE}of{SPACE}sentence{BAR}>",
    f"<{BAR}User{BAR}>",
    f"<{BAR}Assistant{BAR}>",
    "<think>",
    "</think>",
    DSML,
)


def flags(reasoning_parser: str, tool_parser: str | None = None, strict: str = "auto") -> Any:
    """Return the command line of vLLM with these parsers."""
    return Namespace(
        structured_outputs_config=Namespace(reasoning_parser=reasoning_parser),
        tool_call_parser=tool_parser,
        enable_auto_tool_choice=tool_parser is not None,
        tool_strict_level=strict,
    )


def model_with_markers(folder: Path) -> Path:
    """Write a tiny model whose vocabulary has the markers."""
    from tests.verifier.vllm_target.v2 import tiny

    tiny.make(folder, padding=len(MARKERS))
    file = str(folder / "tokenizer.json")
    tokenizer = tokenizers.Tokenizer.from_file(file)
    tokenizer.add_special_tokens(list(MARKERS))
    tokenizer.save(file)
    return folder


# Prompts, and what a verifier lists of them.


CHATS = "/v1/chat/completions"
CHAT: dict[str, Any] = {
    "model": MODEL,
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "ba de ki lo mu"},
    ],
    "max_tokens": 120,
    "temperature": 0,
    "reasoning_effort": "low",
    "logit_bias": {str(TOKENS + number): -100 for number in range(len(MARKERS))},
}
"""No marker is drawn: the parser that vLLM has for this family shows even special tokens."""


@pytest.mark.parametrize(
    ("code", "flags", "fields"),
    [
        ("GptOssForCausalLM", flags("openai_gptoss", "openai"), ["tools"]),
        ("GptOssForCausalLM", flags("openai_gptoss", "openai", "function"), []),
        ("GptOssForCausalLM", flags("openai_gptoss", "hermes"), []),
        ("GptOssForCausalLM", flags("openai_gptoss"), []),
        ("DeepseekV4Renderer", flags(""), [*STOPS, "continue_final_message"]),
        (
            "DeepseekV4Renderer",
            flags("deepseek_v4", "deepseek_v4"),
            [*STOPS, "continue_final_message", "tools"],
        ),
        ("CohereRenderer", flags("openai_gptoss", "openai"), None),
    ],
)
def test_a_verifier_lists_what_an_edge_reads_as_vllms_parsers_do(
    code: str, flags: Namespace, fields: list[str] | None
) -> None:
    from verifier.vllm_target.serving.rendering import listed_path, template_of

    template = template_of(code, flags)

    served = listed_path(TokenizerFile("huggingface", b"", template=template))
    assert served == ({} if fields is None else {PATH: fields})
    assert (choose(template) == "harmony") is (code.startswith("Gpt") and fields is not None)


@asynccontextmanager
async def rendering(
    model: Path, **parsers: Any
) -> AsyncIterator[tuple[httpx.AsyncClient, Any]]:
    """Give a client of the route over vLLM's renderer, without an engine; and its tokenizer."""
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.renderers.online_renderer import OnlineRenderer
    from vllm.renderers.registry import renderer_from_config

    from verifier.vllm_target.serving.rendering import Rendering

    mode = "hf" if parsers else "deepseek_v4"
    args = AsyncEngineArgs(model=str(model), tokenizer_mode=mode, max_model_len=512)
    config = args.create_engine_config()
    online = OnlineRenderer(
        config.model_config,
        renderer_from_config(config),
        request_logger=None,
        chat_template=None,
        chat_template_content_format="auto",
        **parsers,
    )
    app = build(load(None, {"PICOSPEC_API_KEYS": KEY}, {}), lambda _: FakeTarget())
    app.router.routes.insert(0, Route(PATH, Rendering(online).prompt, methods=["POST"]))
    async with client_of(app) as client:
        client.headers["authorization"] = f"Bearer {KEY}"
        yield client, online.renderer.get_tokenizer()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def renderer(
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[tuple[httpx.AsyncClient, Any]]:
    async with rendering(model_with_markers(tmp_path_factory.mktemp("model"))) as both:
        yield both


async def test_an_edge_gets_the_prompt_that_vllms_code_makes_for_gpt_oss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vllm.entrypoints.openai.parser.harmony_utils import get_encoding

    monkeypatch.setenv("VLLM_SYSTEM_START_DATE", "2026-01-01")
    file = model_with_markers(tmp_path / "model") / "config.json"
    config = {**json.loads(file.read_text()), "model_type": "gpt_oss", "num_local_experts": 2}
    config["architectures"] = ["GptOssForCausalLM"]
    file.write_text(json.dumps({k: v for k, v in config.items() if not k.startswith("rope")}))
    tool = {"type": "function", "function": {"name": "now", "parameters": {"type": "object"}}}
    body = {"messages": CHAT["messages"], "tools": [tool], "reasoning_effort": "low"}
    parsers = {"reasoning_parser": "openai_gptoss", "tool_parser": "openai"}

    async with rendering(file.parent, enable_auto_tools=True, **parsers) as (client, _):
        answer = await client.post(PATH, json=body)
        refused = await client.post(PATH, json={**body, "reasoning_effort": "none"})

    assert (answer.status_code, refused.status_code) == (200, 400), answer.text
    text = get_encoding().decode(answer.json()["token_ids"])
    parts = re.findall(
        r"<.start.>(\w+)|(Reasoning: low|Be brief|type now|ba de ki lo mu)", text
    )
    assert ["".join(each) for each in parts] == [
        "system", "Reasoning: low", "developer", "Be brief", "type now", "user",
        "ba de ki lo mu", "assistant",
    ]  # fmt: skip


@IN_THE_MODULES_LOOP
async def test_an_edge_gets_the_tokens_that_vllms_code_makes_of_a_chat(
    renderer: tuple[httpx.AsyncClient, Any],
) -> None:
    client, tokenizer = renderer
    shown = {"messages": CHAT["messages"], "chat_template_kwargs": {"thinking": False}}

    answer = await client.post(PATH, json={**shown, "model": "fake"})

    begin, _, user, assistant, _, closing, _ = MARKERS
    text = f"{begin}Be brief.{user}ba de ki lo mu{assistant}{closing}"
    assert answer.status_code == 200, answer.text
    assert answer.json() == {"token_ids": tokenizer.encode(text, add_special_tokens=False)}


@IN_THE_MODULES_LOOP
@pytest.mark.parametrize(
    "body",
    [
        b"[" * 100_000,
        b"[]",
        b"{}",
        b'{"messages":[{"role":"user","content":5}]}',
        b'{"messages":[{"role":"user"}],"max_tokens":1e999}',
        b'{"messages":[{"role":"user","content":"%b"}]}' % (b"ba " * 2000),
    ],
)
async def test_what_vllm_makes_no_prompt_of_is_refused(
    renderer: tuple[httpx.AsyncClient, Any], body: bytes
) -> None:
    client, _ = renderer

    answer = await client.post(PATH, content=body)
    stranger = await client.post(PATH, content=body, headers={"authorization": "Bearer none"})

    assert answer.status_code == 400, answer.text
    assert stranger.status_code == 401


# An edge reads the tokens of an answer as vLLM's own parser of the family does: reasoning,
# content, calls and finish reason, streamed and whole.


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


def asking(tools: Tools) -> Any:
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
    asked = asking(tools)
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


def parameter(name: str, value: str, string: str = "true") -> str:
    return f'<{DSML}parameter name="{name}" string="{string}">{value}</{DSML}parameter>\n'


def calls(*called: tuple[str, str]) -> str:
    texts = [
        f'<{DSML}invoke name="{name}">\n{inside}</{DSML}invoke>\n' for name, inside in called
    ]
    return f"<{DSML}tool_calls>\n{''.join(texts)}</{DSML}tool_calls>"


OSLO = parameter("city", 'ba "de" <x>\n') + parameter("days", "3", "false")
DEEPSEEK = [
    "ba de\n\n" + calls(("weather", OSLO)) + " ki",
    "\n\n" + calls(("now", ""), ("weather", parameter("when", '{"a": [1]}', "false"))),
    calls(("weather", parameter("days", "3") + parameter("when", "True", "false"))),
    calls(("weather", parameter("city", "5", "false"))).replace("tool_calls>", "tool>", 1),
    calls(("now", "")).removeprefix(f"<{DSML}tool_calls>\n"),
    f"ba <b> <{DSML} de",
    " \n ki lo <ki> < \n",
]
THOUGHTS = {
    "content": "",
    "reasoning": "so </think>",
    "reasoning of several lines": " \n ba\n de \n</think>",
}


@pytest.mark.parametrize("before", THOUGHTS.values(), ids=THOUGHTS)
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
    parser: Any = partial(parsers, encoder, asking(TOOLS).tools, chat_template_kwargs=kwargs)
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


# Whole answers.


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def ends(
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[tuple[httpx.AsyncClient, httpx.AsyncClient]]:
    """Give clients of an edge without a draft model, and of its vLLM."""
    model = model_with_markers(tmp_path_factory.mktemp("model"))
    flags = "--tokenizer-mode", "deepseek_v4", "--reasoning-parser", "deepseek_v4"
    keys = {"PICOSPEC_VERIFIER_KEY": KEY}
    async with (
        vllm_serve(model, tmp_path_factory.mktemp("packages"), *flags) as served,
        proxying(Upstream(), verifier=served.url, environ=keys) as edge,
    ):
        yield edge, served.vllms


def said(answer: httpx.Response) -> tuple[str, str, str]:
    """Return reasoning, content and the finish reason of an answer, streamed or not."""
    assert answer.status_code == 200, answer.text
    lines = [line[6:] for line in answer.text.splitlines() if line.startswith("data: {")]
    choices = [each for line in lines or [answer.text] for each in json.loads(line)["choices"]]
    parts = [each["delta"] if "delta" in each else each["message"] for each in choices]
    reasoning = "".join(p.get("reasoning_content") or p.get("reasoning") or "" for p in parts)
    content = "".join(p.get("content") or "" for p in parts)
    return reasoning, content, str(choices[-1]["finish_reason"])


@IN_THE_MODULES_LOOP
@pytest.mark.long
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("thinking", [False, True])
async def test_a_chat_that_vllm_renders_by_code_is_drafted_and_equal_to_vllms(
    ends: tuple[httpx.AsyncClient, httpx.AsyncClient], stream: bool, thinking: bool
) -> None:
    edge, vllms = ends
    asked = {**CHAT, "stream": stream, "chat_template_kwargs": {"thinking": thinking}}
    if not thinking:
        del asked["reasoning_effort"]
    watching = {"stream_options": {"include_speculation": True}} if stream else {}

    expected = await vllms.post(CHATS, json=asked)
    answer = await edge.post(CHATS, json={**asked, **watching})

    assert said(answer) == said(expected)
    assert said(answer)[0 if thinking else 1]
    assert "x-picospec-relayed" not in answer.headers
    if stream:
        passes = int(re.findall(r'"passes": ?(\d+)', answer.text)[-1])
        assert passes < CHAT["max_tokens"]
    else:
        counts, theirs = answer.json(), expected.json()["usage"]
        assert counts["usage"]["prompt_tokens"] == theirs["prompt_tokens"]
        assert counts["metrics"]["speculative_decoding"]["num_accepted_draft_tokens"] > 0
