"""Each body of the corpus means at every endpoint what it says there, or is refused as it says;
and each answer is written as its transcript shows.

A line of corpus/*.jsonl is a request, and what becomes of it:

    endpoint       the path that it is posted to
    body       what differs from the endpoint's LEAST body; null leaves a field out
    client     in place of `body`: the real client whose request corpus/clients/ has
    means      what is generated, as far as that differs from LEAST (see `meaning`)
    status     or how it is refused, with the field, code and type of the error (see `refusal`)

A transcript in corpus/transcripts/ is such a line without `means`, and the exact answer to it.
A case may change the service that gets it (SERVICE of cases.py), and say with `about` what it
is about.

To add a case, add a line with an endpoint and a body, and run `pytest tests/gateway --update`.
It writes the rest, and the whole corpus anew: its diff shows what a change of an endpoint
changes."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from typing import Any

import httpx
import pytest

from gateway import errors, structured_outputs
from gateway.endpoints import chat_answer, responses_handlers
from gateway.endpoints.chat import ChatRequest
from gateway.endpoints.parameters import SERVABLE
from gateway.endpoints.request import GenerationRequest
from gateway.endpoints.response_store import ResponseStore
from gateway.endpoints.responses import ResponsesRequest
from gateway.endpoints.tools import ToolUse
from gateway.ports import Sampling
from gateway.routes import ROUTES
from tests.gateway.cases import CASES, SERVICE, TRANSCRIPTS, USER, Case, normalised
from tests.gateway.scripted import (
    MODEL,
    Body,
    ByteTokenizer,
    ScriptedEngine,
)

RESULTS = ("means", "status", "field", "code", "type", "says", "retry_after")


@pytest.mark.parametrize("case", CASES, ids=str)
async def test_a_body_means_what_the_corpus_says_or_is_refused_as_it_says(
    case: Case, request: pytest.FixtureRequest
) -> None:
    engine, tokenizer = case.engine(), case.tokenizer()

    answer = await case.answer(engine, tokenizer)

    if answer.status_code == 200:
        found: Body = {"means": meaning(case, engine, tokenizer, answer)}
    else:
        found = refusal(case, answer)
        assert case.of("fails") or engine.jobs == []
    case.line.check(found, request, RESULTS)


def test_cases_have_no_names_that_nobody_reads() -> None:
    known = {*SERVICE, *RESULTS, "about", "endpoint", "body", "client", "method"}

    for case in (*CASES, *TRANSCRIPTS):
        assert case.line.given.keys() <= known


def test_each_parameter_that_only_some_engines_serve_is_refused_by_another() -> None:
    refused = {
        case.line.given["field"]
        for case in CASES
        if case.of("features") == [] and case.line.given.get("code") == errors.UNSUPPORTED
    }

    assert refused >= {*SERVABLE}


def meaning(
    case: Case, engine: ScriptedEngine, tokenizer: ByteTokenizer, answer: httpx.Response
) -> Body:
    """Return what a request asks of the template, the engine and the reader of the answer, as
    far as it is not what LEAST asks; messages and tools, as far as they are not as sent."""
    found: Body = {}
    shown = tokenizer.rendered[0] if tokenizer.rendered else None
    if shown and shown["messages"] not in (case.body.get("messages"), [USER]):
        found["messages"] = shown["messages"]
    if shown and [*shown["tools"]] != case.body.get("tools", []):
        found["tools"] = shown["tools"]
    if shown and shown["options"]:
        found["options"] = shown["options"]
    if engine.jobs:
        found |= asked(case, engine, shown is None)
        request = generation(case.endpoint, case.body)
        found |= {"stop": request.stop} if request.stop else {}
        if isinstance(request, ChatRequest) and (use := calls(request.tool_use)):
            found["calls"] = use
    if models := {*re.findall(r'"model":"([^"]*)"', answer.text)} - {MODEL}:
        found["model"] = " ".join(models)
    if ignored := answer.headers.get("x-picospec-ignored"):
        found["ignored"] = ignored.split(", ")
    return {name: short(value) for name, value in json.loads(json.dumps(found)).items()}


def short(value: object) -> object:
    """Return a long value as its beginning and its length."""
    if isinstance(value, list):
        value = [short(each) for each in value]
    is_long = isinstance(value, str | list | dict) and len(value) > 32
    return f"{str(value)[:16]}... {len(value)}" if is_long else value


def asked(case: Case, engine: ScriptedEngine, is_raw: bool) -> Body:
    jobs, first = engine.jobs, engine.jobs[0]
    prompts = [*dict.fromkeys(job.prompt for job in jobs)]
    texts = [bytes(each).decode() if max(each) < 256 else each for each in prompts]
    found: Body = {}
    if is_raw and texts not in (case.body.get("prompt"), [case.body.get("prompt")]):
        found["prompt"] = texts[0] if len(texts) == 1 else texts
    if len(jobs) > 1:
        found["seeds"] = [job.seed for job in jobs]
    room = case.of("context") - len(first.prompt)
    usual = {"max_tokens": room, "seed": 41, "top_logprobs": None, "identity": ""}
    usual |= {"watched": False, "prompt_logprobs": None}
    found |= {n: getattr(first, n) for n in usual if getattr(first, n) != usual[n]}
    drawn = {name: getattr(first.sampling, name) for name in Sampling.__struct_fields__}
    found |= {n: value for n, value in drawn.items() if value != getattr(Sampling(), n)}
    for name, value in first.extras.items():
        made = value.get("grammar", "") if name == structured_outputs.NAME else ""
        rules = [rule for rule in made.splitlines() if rule.startswith(("start:", "object:"))]
        found[name] = rules or value
    return found


def generation(endpoint: str, body: Body) -> GenerationRequest:
    """Return the request that an endpoint makes of a body."""
    if endpoint == "/v1/responses":
        parsed = ResponsesRequest.model_validate(body)
        return responses_handlers.convert(ResponseStore(lambda: 0.0), parsed).body
    if endpoint == "/v1/chat/completions":
        return chat_answer.convert(ChatRequest.model_validate(body)).body
    handler: Any = next(route.handler for route in ROUTES if route.path == endpoint)
    schema, convert = handler.args
    converted: GenerationRequest = convert(schema.model_validate(body)).body
    return converted


def calls(use: ToolUse) -> Body:
    """Return which calls an answer may have, unless that is any of the tools."""
    usual = ToolUse(use.tools, "auto" if use.tools else "none")
    named = {each.name: getattr(use, each.name) for each in fields(use)}
    found = {name: value for name, value in named.items() if value != getattr(usual, name)}
    return {n: sorted(v) if isinstance(v, frozenset) else v for n, v in found.items()}


def refusal(case: Case, answer: httpx.Response) -> Body:
    """Return the status of an error, and its field, code and type in the shape of the endpoint.
    Its message begins with the field's name, if not with what the line says."""
    error, shape = answer.json()["error"], {"error"}
    if isinstance(error, str):  # Ollama's
        told = {"message": error, "param": re.split("[: ]", error)[0]}
        told |= {} if answer.status_code == 400 else {"param": None}
    else:
        told = {**error, **error.get("details", {})}
        told["code"] = told.get("error_code", told.get("code"))
        shape |= {"type"} if case.endpoint.startswith("/v1/messages") else set()
    assert answer.json().keys() == shape
    found: Body = {"status": answer.status_code}
    found |= {"field": told["param"]} if told["param"] else {}
    found |= {name: told[name] for name in ("code", "type") if name in told}
    if found.get("type") == "invalid_request_error":
        del found["type"]
    if not told["message"].startswith(told["param"] or "?"):
        found["says"] = told["message"]
    if after := answer.headers.get("retry-after"):
        found["retry_after"] = after
    return found


# Answers are written as the transcripts show, but for times and random ids.


@pytest.mark.parametrize("case", TRANSCRIPTS, ids=str)
async def test_an_answer_is_written_as_its_transcript_shows(
    case: Case, request: pytest.FixtureRequest
) -> None:
    answer = await case.answer(case.engine(), case.tokenizer())

    kind = answer.headers["content-type"]
    text = normalised(answer.text, is_counted="statistics" in case.line.given)
    shown = f"{answer.status_code} {kind}\n{text}".strip("\n")
    if request.config.getoption("update"):
        replace(case, shown)
    else:
        assert shown == case.shown


def replace(case: Case, shown: str) -> None:
    """Write another answer in a transcript."""
    file = case.line.file
    parts = re.split(r"^(?=### )", file.read_text(encoding="utf-8"), flags=re.MULTILINE)
    given, _, _ = parts[case.line.number + 1].partition("\n")
    parts[case.line.number + 1] = f"{given}\n{shown}\n\n"
    file.write_text("".join(parts), encoding="utf-8")
