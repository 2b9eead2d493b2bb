"""Tests read here what a request asks of the engine and the template, whatever its door."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from picospec.gateway.ports import Job
from tests.gateway.scripted import Body, ByteTokenizer, ScriptedEngine, ask

FEATURES = frozenset({"structured_outputs", "presence_penalty"})


async def meaning(
    body: Mapping[str, object], *, path: str = "", template: str = "<think></think><tool_call>"
) -> tuple[list[Job], list[Body]]:
    """Return the jobs, without what no two requests share, and what the template got."""
    engine = ScriptedEngine(features=FEATURES, context_tokens=4096)
    tokenizer = ByteTokenizer(template=template)
    answer = await ask(body, engine, path=path, tokenizer=tokenizer)
    assert answer.status_code == 200, answer.text
    return [replace(job, request_id="", owner=None) for job in engine.jobs], tokenizer.rendered


async def job_of(
    body: Body, engine: ScriptedEngine | None = None, tokenizer: ByteTokenizer | None = None
) -> Job:
    """Return what an engine is asked for, at last, by a request that it serves."""
    engine = engine or ScriptedEngine()
    answer = await ask(body, engine, tokenizer=tokenizer)
    assert answer.status_code == 200, answer.text
    return engine.jobs[-1]
