"""The endpoints. Each reads, checks, plans, and hands over to a reply."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import TypeVar

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from gateway import planning
from gateway.account import Account
from gateway.errors import ClientGone
from gateway.parameters import extras
from gateway.planning import Plan
from gateway.ports import Engine, Facts, Tokenizer, TokenizerSource
from gateway.reading import Reader, speak
from gateway.replies import Heading, json_response, whole_reply
from gateway.schemas import ChatRequest, CompletionRequest
from gateway.shapes import ChatShape, CompletionShape, Json, Shape
from gateway.streaming import StreamReply
from gateway.validation import parse

AnyRequest = TypeVar("AnyRequest", ChatRequest, CompletionRequest)
Render = Callable[[AnyRequest, Tokenizer], tuple[planning.Prompt, ...]]


@dataclass(frozen=True, slots=True)
class Face:
    engine: Engine
    tokenizer: TokenizerSource
    registry: CollectorRegistry
    thread: Executor
    """Renders and tokenises prompts: long ones would stall every stream."""

    max_choices: int
    draw_seed: Callable[[], int]
    started: int
    """Unix time, seconds."""

    async def chat_completions(self, request: Request) -> Response:
        asked = parse(ChatRequest, await _body(request))
        return await self._answer(request, asked, planning.chat_prompts, ChatShape())

    async def completions(self, request: Request) -> Response:
        asked = parse(CompletionRequest, await _body(request))
        render = planning.completion_prompts
        return await self._answer(request, asked, render, CompletionShape())

    async def models(self, _: Request) -> Response:
        facts = await self.engine.facts()
        return json_response({"object": "list", "data": [self._model(facts)]})

    async def model(self, request: Request) -> Response:
        facts = await self.engine.facts()
        planning.check_model(request.path_params["name"], facts)
        return json_response(self._model(facts))

    async def health(self, _: Request) -> Response:
        """200 when the engine can serve; 503 says why it cannot."""
        facts = await self.engine.facts()
        return json_response({"status": "ok", "model": facts.model})

    async def metrics(self, _: Request) -> Response:
        return Response(generate_latest(self.registry), media_type=CONTENT_TYPE_LATEST)

    async def _answer(
        self,
        request: Request,
        asked: AnyRequest,
        render: Render[AnyRequest],
        shape: Shape,
    ) -> Response:
        account: Account = request.state.account
        facts = await self.engine.facts()
        tokenizer = await self.tokenizer()
        name = f"{shape.prefix}{uuid.uuid4().hex}"
        plan = await self._plan(asked, render, facts, tokenizer, name)
        account.took_prompt(plan.prompt_tokens)
        logprobs = asked.wanted_logprobs is not None
        heading = Heading(name, int(time.time()), facts.model, shape, logprobs)
        voices = [
            speak(
                self.engine.generate(job),
                Reader(tokenizer.piece, stop_tokens=facts.stop_tokens, stops=plan.stops),
            )
            for job in plan.jobs
        ]
        if not asked.stream:
            return await whole_reply(heading, voices, account, request.receive)
        usage = asked.stream_options is not None and asked.stream_options.include_usage
        return StreamReply(heading, voices, account, usage=usage)

    async def _plan(
        self,
        asked: AnyRequest,
        render: Render[AnyRequest],
        facts: Facts,
        tokenizer: Tokenizer,
        name: str,
    ) -> Plan:
        planning.check_model(asked.model, facts)
        planning.check_count(asked, max_choices=self.max_choices)
        told = extras(asked.model_extra or {}, facts)
        loop = asyncio.get_running_loop()
        prompts = await loop.run_in_executor(self.thread, render, asked, tokenizer)
        seed = self.draw_seed() if asked.seed is None else asked.seed
        return planning.plan(asked, prompts, facts, told=told, name=name, seed=seed)

    def _model(self, facts: Facts) -> Json:
        return {
            "id": facts.model,
            "object": "model",
            "created": self.started,
            "owned_by": "picospec",
            "max_model_len": facts.context_tokens,
        }


async def _body(request: Request) -> bytes:
    try:
        return await request.body()
    except ClientDisconnect as error:
        raise ClientGone("the client went away before its request was complete") from error
