"""The service on vLLM as clients meet it, with and without an edge; and when it ends, or its
engine is killed, answers go on at another one.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import AsyncOpenAI, BadRequestError
from openai.types.chat.chat_completion import Choice
from openai.types.chat.chat_completion_token_logprob import TopLogprob

from bench.run.services import EdgePlan, Services, ServicesPlan
from local_models.store import open_store
from speculation.messages import UNLIKELY
from tests.faults.rig.asking import MODEL, Answer
from tests.faults.rig.world import FOLDER, Plan, World
from tests.faults.strikes import Strike, ask_again, drain, struck
from tests.verifier.vllm_target.conftest import ON_ENGINE, SMALL
from tests.verifier.vllm_target.request_values import (
    CHATS,
    COMPLETIONS,
    MESSAGES,
    RESPONSES,
    USUAL,
    requests,
)
from tests.verifier.vllm_target.scripted import PERSON

pytestmark = ON_ENGINE


def schema(shape: dict[str, Any]) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "shape", "schema": shape}}


FEATURES: dict[str, dict[str, Any]] = {
    "drawn": {"temperature": 1.0, "top_p": 0.95},
    "stop": {"stop": [" the", "\n\n"]},
    "logprobs": {"logprobs": True, "top_logprobs": 3},
    "penalties": {"presence_penalty": 1.2, "frequency_penalty": 0.5},
    "bias": {"logit_bias": {"28": 4, "30": -100}},
    "min_tokens": {"extra_body": {"min_tokens": 40}},
    "json": {"response_format": schema(PERSON), "logprobs": True, "top_logprobs": 20},
}


HUGE = "Use much memory."
COSTLY = f"""{{% if messages[0].content == '{HUGE}' -%}}
  {{% set _ = ('a' * (messages | length * 600 * 2 ** 20)) | length -%}}
{{% endif -%}}
"""
"""The template of the model begins with this. For one chat it takes more memory than a process
has in which an edge renders (local_models/template.py); vLLM renders any chat."""

MORE: list[tuple[str, str, dict[str, Any]]] = [
    (CHATS, "bad_words", {"bad_words": [" red", "Red"], "stream": True}),
    (CHATS, "allowed_token_ids", {"allowed_token_ids": [28, 30, 253], "stream": True}),
    (CHATS, "temperature", {"temperature": 2.5, "seed": 1}),
    (COMPLETIONS, "echo", {"echo": True, "logprobs": 1, "max_tokens": 0}),
    (COMPLETIONS, "echo", {"echo": True, "logprobs": 1, "stream": True}),
    (MESSAGES, "vllm_xargs", {"vllm_xargs": {"a": 1}, "stream": True}),
    (CHATS, "messages", {"messages": [{"role": "user", "content": HUGE}]}),
    (CHATS, "messages", {"messages": [{"role": "user", "content": HUGE}], "stream": True}),
]
"""What is proxied: fields together with others, and a chat that an edge cannot render."""

OURS = {
    (CHATS, "documents"),  # vLLM leaves them out without a word
    (RESPONSES, "previous_response_id"),  # an edge keeps responses, and has OpenAI's error
}
"""An edge refuses these, and vLLM answers otherwise (docs/api.md)."""

OWN = re.compile(
    r'"(?:id|item_id|created|created_at|system_fingerprint)": ?(?:"[^"]*"|[0-9.]+),?'
)
"""Each answer has others of these, and a stream that is not counted has no fingerprint."""

TEXTS = {"content", "text", "delta", "reasoning", "thinking", "token", "tokens"} | {
    "finish_reason",
    "stop_reason",
    "stop_sequence",
    "reason",
}
COUNTS = {"prompt_tokens", "completion_tokens", "input_tokens", "output_tokens"}


def shown(answer: httpx.Response) -> tuple[int, str]:
    if answer.status_code != 200:
        return answer.status_code, answer.json()["error"]["message"]
    return 200, OWN.sub("", answer.text).replace(",}", "}")


def said(answer: httpx.Response) -> dict[str, Any]:
    """What an answer says, in whatever fields and events: its texts and tokens, joined by the
    fields' names, the reasons why it ended, the scores, and the last counts."""
    if answer.status_code != 200:
        return {"status": answer.status_code}
    sent = [line[6:] for line in answer.text.splitlines() if line.startswith("data: {")]
    found: dict[str, Any] = {}
    for name, value in leaves([json.loads(each) for each in sent or [answer.text]]):
        if name in TEXTS and isinstance(value, str):
            found[name] = found.get(name, "") + value
        elif name in COUNTS and value is not None:
            found[name] = value
        elif name in ("logprob", "token_logprobs"):
            found.setdefault(name, []).append(value and round(value, 2))
    if "finish_reason" in found:
        found.pop("stop_reason", None)  # vLLM's, beside OpenAI's
    return found


def leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict | list):
        pairs = value.items() if isinstance(value, dict) else [(name, each) for each in value]
        for inner, each in pairs:
            yield from leaves(each, inner)
    else:
        yield name, value


async def check_equal(urls: Sequence[str], is_long: bool) -> None:
    """Ask an edge and its vLLM with each field of vLLM's classes, two fields at a time: by one
    API that has it, and with --long by each."""
    from verifier.vllm_target.serving.request_fields import REQUESTS

    limits = asyncio.Semaphore(2)
    async with httpx.AsyncClient(timeout=300) as client:
        model = (await client.get(f"{urls[0]}/v1/models")).json()["data"][0]["id"]

        async def ask(
            path: str, field: str, given: dict[str, Any], must_relay: bool = False
        ) -> None:
            body = {"model": model, "temperature": 0, **given}
            async with limits:
                plain, edge = await asyncio.gather(
                    *(client.post(url + path, json=body) for url in urls)
                )
            if field_asked := edge.headers.get("x-picospec-relayed-for"):
                assert field_asked in given, (path, field)
                assert shown(edge) == shown(plain), (path, field)
            else:
                assert not must_relay, (path, field)
                is_equal = said(edge) == said(plain)
                assert is_equal is ((path, field) not in OURS), (path, said(edge), said(plain))

        more = [(path, field, {**USUAL[path], **given}, True) for path, field, given in MORE]
        fields = requests(REQUESTS)
        if not is_long:
            fields = list({each[1]: each for each in reversed(fields)}.values())
        async with asyncio.TaskGroup() as group:
            for request in [*fields, *more]:
                group.create_task(ask(*request))


def services(directory: Path, folder: Path) -> Services:
    """Serve the model with a chat template that an edge cannot always render."""
    template = folder / "costly.jinja"
    template.write_text(COSTLY + (directory / "chat_template.jinja").read_text())
    store = open_store(os.environ)
    store.pull("smollm2", lambda what, done, total: None)
    return Services(
        ServicesPlan(
            str(directory),
            "smollm2",
            {"edge": EdgePlan()},
            target="vllm",
            verifier_arguments=(*SMALL, "--vllm.chat-template", str(template)),
            verifier_python=sys.executable,
        )
    )


async def ask(url: str, **features: Any) -> Choice:
    async with AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        completion = await client.chat.completions.create(
            model=(await client.models.list()).data[0].id,
            messages=[{"role": "user", "content": "Tell me about a person you know."}],
            **{"temperature": 0.0, "seed": 3, "max_tokens": 48, **features},
        )
    return completion.choices[0]


def likeliest(choice: Choice) -> list[tuple[str, set[str]]]:
    said = choice.logprobs.content if choice.logprobs else None
    return [(each.token, possible(each.top_logprobs)) for each in said or ()]


def possible(likeliest: Sequence[TopLogprob]) -> set[str]:
    """The first few that the grammar allows: vLLM names forbidden special tokens, and the order
    of near-ties depends on the rows of a pass."""
    return {top.token for top in likeliest[:5] if top.logprob > UNLIKELY}


async def test_features_are_the_same_at_the_edge_and_at_the_plain_engine(
    directory: Path, tmp_path: Path, is_long: bool
) -> None:
    async with services(directory, tmp_path) as served:
        for name, features in FEATURES.items():
            plain, edge = [
                await ask(url, **features)
                for url in (served.verifier_url, served.edge_urls["edge"])
            ]

            assert edge.message.content == plain.message.content, name
            assert edge.finish_reason == plain.finish_reason, name
            assert likeliest(edge) == likeliest(plain), name

        urls = served.verifier_url, served.edge_urls["edge"]
        await check_equal(urls, is_long)
        for url in urls:
            with pytest.raises(BadRequestError, match="nonsense"):
                await ask(url, response_format=schema({"type": "nonsense"}))


# Answers of a verifier on vLLM that ends, or whose engine is killed, go on at another one.


ENGINE = (
    "--target", "vllm", *SMALL, "--vllm.max-model-len", "1024", "--vllm.self-test", "false",
    "--pass-timeout-s", "300", "--served-name", MODEL,
)  # fmt: skip
ENDS = {"stop", "length", "tool_calls"}
REOPENED = "picospec:edge_reopened_answers_total"
AT_ONCE = ("--drain-timeout-s", "0")
"""Answers as short as these would end within a deadline."""


def _rounded(answer: Answer) -> Answer:
    """Return it with log-probabilities to three digits: their last ones depend on the other
    rows of a pass."""
    logprobs = [{**each, "logprob": round(each["logprob"], 3)} for each in answer.logprobs]
    return replace(answer, logprobs=[{**each, "top_logprobs": []} for each in logprobs])


def is_core(pid: int) -> bool:
    return b"EngineCore" in Path(f"/proc/{pid}/cmdline").read_bytes()


async def kill_core(world: World) -> None:
    """Kill vLLM's core; its API server is to notice, and to end."""
    verifier = await world.used()
    (core,) = filter(is_core, verifier.pids)
    os.kill(core, signal.SIGKILL)
    await verifier.ended()


@pytest.mark.long
@pytest.mark.parametrize("strike", [drain, kill_core])
async def test_answers_go_on_at_another_verifier_and_are_the_same(
    directory: Path, strike: Strike
) -> None:
    options = (*ENGINE, "--model", str(directory), *AT_ONCE)
    async with World(Plan(verifier_options=options, folder=FOLDER / "vllm")) as world:
        undisturbed = await ask_again(world)

        answers, _ = await struck(world, strike)

        assert {answer.outcome for answer in undisturbed.values()} <= ENDS
        assert {kind: _rounded(answer) for kind, answer in answers.items()} == {
            kind: _rounded(answer) for kind, answer in undisturbed.items()
        }
        assert sum((await world.edge.gauge(world.http, REOPENED)).values()) >= 1
