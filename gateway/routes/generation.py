"""Answers a request for choices, as chat completions and completions do."""

from __future__ import annotations

import asyncio
import time
import uuid

from starlette.requests import Request
from starlette.responses import Response

from gateway.account import Account
from gateway.choice_stream import stream_choice
from gateway.detokenise import Detokeniser
from gateway.ports import Facts, Job, Tokenizer
from gateway.routes.answer import Answer
from gateway.routes.event_stream import EventStream
from gateway.routes.jobs import check_choices, plan_jobs
from gateway.routes.json_answer import json_answer
from gateway.routes.parameters import check_extras
from gateway.routes.request import GenerationRequest
from gateway.routes.services import Services


async def generate(
    services: Services, request: Request, body: GenerationRequest, make_answer: type[Answer]
) -> Response:
    """Generate the choices that the body asks for. Raises ApiError."""
    account: Account = request.state.account
    facts = await services.facts_of(body.model)
    tokenizer = await services.tokenizer()
    name = f"{make_answer.id_prefix}{uuid.uuid4().hex}"
    jobs = await _jobs(services, body, facts, tokenizer, name)
    account.took_prompt(sum(len(job.prompt) for job in jobs[:: body.n]))
    wants_logprobs = body.wanted_logprobs is not None
    answer = make_answer(name, int(time.time()), facts.model, wants_logprobs)
    streams = [
        stream_choice(
            services.engine.generate(job),
            Detokeniser(tokenizer.piece, stop_tokens=facts.stop_tokens, stops=body.stop),
        )
        for job in jobs
    ]
    if body.stream:
        return EventStream(answer, streams, account, usage=body.include_usage)
    return await json_answer(answer, streams, account, request.receive)


async def _jobs(
    services: Services,
    body: GenerationRequest,
    facts: Facts,
    tokenizer: Tokenizer,
    name: str,
) -> list[Job]:
    check_choices(body, max_choices=services.max_choices)
    extras = check_extras(body.model_extra or {}, facts)
    loop = asyncio.get_running_loop()
    prompts = await loop.run_in_executor(services.executor, body.tokenise, tokenizer)
    seed = services.draw_seed() if body.seed is None else body.seed
    return plan_jobs(body, prompts, facts, extras=extras, name=name, seed=seed)
