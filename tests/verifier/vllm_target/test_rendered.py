"""Chats whose prompts vLLM makes by code are drafted, and equal to vLLM's own answers.

The model is tiny and random; its made vocabulary has DeepSeek V4's markers.
"""

from __future__ import annotations

import json
import re
from argparse import Namespace
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from starlette.routing import Route

from bench.pace.tiny_model import TOKENS
from bench.run.services import free_port
from gateway.endpoints.rendering import PATH, STOPS
from gateway.output.detokenise import Detokeniser, StopConditions
from gateway.output.output_format import CallRules, OutputFormats, choose
from gateway.ports import Delta, Statistics
from local_models.tokenizer_file import TokenizerFile, tokenizer_file
from tests.edge_agent.proxying import Upstream, proxying
from tests.gateway.scripted import client_of
from tests.guards import GUARD_S
from tests.verifier.conftest import KEY, http2_client
from tests.verifier.fake_target import FakeTarget
from tests.verifier.vllm_target.conftest import MODEL, VLLMS_KEY, ready, vllm_serve
from tests.verifier.vllm_target.markers import MARKERS, flags, model_with_markers
from verifier.app import build
from verifier.settings import load

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.filterwarnings("default"),
    pytest.mark.asyncio(loop_scope="module"),
]


@pytest.fixture(autouse=True, scope="module")
def installed() -> None:
    pytest.importorskip("vllm")


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
async def test_a_verifier_lists_what_an_edge_reads_as_vllms_parsers_do(
    code: str, flags: Namespace, fields: list[str] | None
) -> None:
    from verifier.vllm_target.serving.rendering import listed_path, template_of

    template = template_of(code, flags)

    served = listed_path(TokenizerFile("huggingface", b"", template=template))
    assert served == ({} if fields is None else {PATH: fields})
    assert (choose(template) == "harmony") is (code.startswith("Gpt") and fields is not None)


@pytest.mark.parametrize("thinks", [False, True])
@pytest.mark.parametrize(
    "text",
    [
        "ba de",
        " \n ba\n de \n</think>\n\n ki lo \n",
        "</think>ki",
        "ba de \n",
        "ba <b </thin </think> <ki> < lo",
    ],
)
async def test_an_edge_reads_reasoning_as_vllms_parser_does(
    text: str, thinks: bool, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.parser.deepseek_v4 import DeepSeekV4Parser

    from verifier.vllm_target.serving.rendering import template_of

    model = model_with_markers(tmp_path / "model")
    template = template_of("DeepseekV4Renderer", flags("deepseek_v4"))
    tokenizer = tokenizer_file(model, template).open()
    if not thinks:
        text = text.replace("</think>", "")
    ids = tokenizer.encode(text, begin=False)
    kwargs = {"thinking": thinks}
    parser = DeepSeekV4Parser(AutoTokenizer.from_pretrained(model), chat_template_kwargs=kwargs)
    request = ChatCompletionRequest(messages=CHAT["messages"], model="m")

    opened = tokenizer.encode("<think>" if thinks else "</think>", begin=False)
    make = partial(Detokeniser, stop=StopConditions())
    reader = OutputFormats().find(tokenizer).reader(make, opened, CallRules({}))
    deltas = [reader.read(Delta((token,))) for token in ids]
    deltas.append(reader.read(Delta((), finish="length", statistics=Statistics())))

    reasoning, content, _ = parser.parse(text, request, model_output_token_ids=ids)
    read = "".join(each.parsed.reasoning for each in deltas if each.parsed)
    assert (read, "".join(each.text for each in deltas)) == (reasoning or "", content or "")


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


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def ends(
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[tuple[httpx.AsyncClient, httpx.AsyncClient]]:
    """Give clients of an edge without a draft model, and of its vLLM."""
    model = model_with_markers(tmp_path_factory.mktemp("model"))
    port, own_port = free_port(), free_port()
    flags = "--tokenizer-mode", "deepseek_v4", "--reasoning-parser", "deepseek_v4"
    process = vllm_serve(model, tmp_path_factory.mktemp("packages"), port, own_port, *flags)
    url, own = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{own_port}"
    headers, keys = {"authorization": f"Bearer {VLLMS_KEY}"}, {"PICOSPEC_VERIFIER_KEY": KEY}
    try:
        async with (
            http2_client(own) as ours,
            httpx.AsyncClient(base_url=url, headers=headers, timeout=GUARD_S) as vllms,
        ):
            await ready(process, ours)
            async with proxying(Upstream(), verifier=own, environ=keys) as edge:
                yield edge, vllms
    finally:
        process.kill()
        process.wait(timeout=GUARD_S)


def said(answer: httpx.Response) -> tuple[str, str, str]:
    """Return reasoning, content and the finish reason of an answer, streamed or not."""
    assert answer.status_code == 200, answer.text
    lines = [line[6:] for line in answer.text.splitlines() if line.startswith("data: {")]
    choices = [each for line in lines or [answer.text] for each in json.loads(line)["choices"]]
    parts = [each["delta"] if "delta" in each else each["message"] for each in choices]
    reasoning = "".join(p.get("reasoning_content") or p.get("reasoning") or "" for p in parts)
    content = "".join(p.get("content") or "" for p in parts)
    return reasoning, content, str(choices[-1]["finish_reason"])


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


@pytest.mark.long
async def test_a_chat_with_tools_is_answered_by_vllms_own_api(
    ends: tuple[httpx.AsyncClient, httpx.AsyncClient],
) -> None:
    """The tools' prompt is longer than this model's context, and vLLM says so."""
    edge, vllms = ends
    tool = {"type": "function", "function": {"name": "a", "parameters": {"type": "object"}}}
    asked = {**CHAT, "tools": [tool], "tool_choice": "none"}

    answer, expected = await edge.post(CHATS, json=asked), await vllms.post(CHATS, json=asked)

    assert answer.headers["x-picospec-relayed"] == "verifier"
    said, theirs = (each.json()["error"]["message"] for each in (answer, expected))
    assert (answer.status_code, said) == (expected.status_code, theirs)
