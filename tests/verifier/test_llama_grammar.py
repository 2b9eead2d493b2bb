"""Grammars at the embedded target on a real model: no draft changes a text, and each text keeps
to its grammar, and ends where that ends."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from dataclasses import replace
from threading import get_ident

import pytest

from gateway.errors import InvalidRequest, Unavailable
from gateway.ports import Job, opening
from local_models.errors import GrammarFailed
from local_models.grammars import GrammarState
from speculation.distributions import Logits
from speculation.logits import Adjust
from speculation.messages import Open
from tests.verifier.served_llama import (
    PERSON,
    PROMPTS,
    TEMPERATURES,
    go_on,
    job_of,
    plain,
    said,
)
from verifier.host import Host
from verifier.target import TargetFull, Unservable

pytestmark = [pytest.mark.models, pytest.mark.asyncio(loop_scope="module")]

ASKED = "Invent a person. Answer in JSON."
NEVER_COMPILED = {"json": {"type": "integer", "multipleOf": 1000003}}


def constrained(host: Host, temperature: float, **constraint: object) -> Job:
    return job_of(host, ASKED, temperature, structured_outputs=constraint)


def text_of(host: Host, tokens: Sequence[int]) -> str:
    return b"".join(map(host.ready().tokenizer.piece, tokens)).decode()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("kind", "value", "pattern"),
    [
        ("regex", r"[A-Z][a-z]{2,8} \d{2}", r"[A-Z][a-z]{2,8} \d{2}"),
        ("choice", ["positive", "negative", "no"], "positive|negative|no"),
        ("grammar", 'start: "yes" | "no" " way"?', "yes|no( way)?"),
        ("grammar", 'root ::= "a"+ "b"', "a+b"),
        ("json", PERSON, r'\{"name":"[^"]{0,12}","age":\d{1,3}\}'),
    ],
)
async def test_a_text_that_ends_keeps_to_its_grammar(
    host: Host, kind: str, value: object, pattern: str, seed: int
) -> None:
    job = replace(constrained(host, 1.0, **{kind: value}), seed=seed)

    tokens = await plain(host, job)

    assert tokens[-1] in host.ready().facts.stop_tokens
    assert re.fullmatch(pattern, text_of(host, tokens))


async def test_where_the_grammar_ends_the_text_ends_whatever_else_is_asked(host: Host) -> None:
    asked = job_of(host, ASKED, 0.0, structured_outputs={"choice": ["no"]}, min_tokens=9)

    assert text_of(host, await plain(host, asked)) == "no"


async def test_a_constraint_that_cannot_be_compiled_is_a_400_and_others_go_on(
    host: Host,
) -> None:
    others = asyncio.create_task(plain(host, job_of(host, ASKED, 1.0)))

    with pytest.raises(InvalidRequest, match="takes more than") as raised:
        await plain(host, constrained(host, 0.0, **NEVER_COMPILED))

    assert raised.value.param == "structured_outputs.json"
    assert await others == await plain(host, job_of(host, ASKED, 1.0))


async def test_a_grammar_that_reaches_a_limit_ends_its_own_session_only(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    def mask(request: Open, _: str | None) -> Adjust | None:
        def fail(logits: Logits, output: Sequence[int]) -> Logits:
            if len(output) == 3:
                raise GrammarFailed("the grammar cannot go on: too large")
            return logits

        return fail if request.sampling.extras else None

    monkeypatch.setattr(host.ready(), "_mask", mask)
    other = job_of(host, ASKED, 1.0)
    alone = await plain(host, other)

    failed, together = await asyncio.gather(
        plain(host, constrained(host, 0.0, choice=["no"])),
        plain(host, other),
        return_exceptions=True,
    )

    assert isinstance(failed, Unavailable)
    assert "too large" in str(failed)
    assert together == alone


async def test_a_grammar_is_for_judge_coupled_and_was_compiled_before(host: Host) -> None:
    target = host.ready()
    request = opening(constrained(host, 0.0, regex="unseen"), target.facts)

    with pytest.raises(TargetFull, match="compiled"):
        await anext(target.replies("unseen", request))
    with pytest.raises(Unservable, match="separate"):
        await target.check(replace(request, judge="separate"))
    with pytest.raises(Unservable, match="separate"):
        await anext(target.replies("separate", replace(request, judge="separate")))


@pytest.mark.parametrize("temperature", TEMPERATURES)
async def test_a_text_that_was_begun_elsewhere_goes_on_within_its_grammar(
    host: Host, temperature: float
) -> None:
    target, job = host.ready(), constrained(host, temperature, json=PERSON)
    request = opening(job, target.facts)
    await target.check(request)
    text, _ = await said(host, request)

    await go_on(host, request, text, 1, len(text) // 2, len(text) - 1)


async def test_a_thread_tries_what_is_committed(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads, allowed = list[int](), GrammarState.count_allowed

    def noted(state: GrammarState, tokens: Sequence[int]) -> int:
        threads.append(get_ident())
        return allowed(state, tokens)

    monkeypatch.setattr(GrammarState, "count_allowed", noted)
    request = opening(constrained(host, 0.0, regex="a+"), host.ready().facts)

    with pytest.raises(Unservable, match="committed"):
        await host.ready().check(replace(request, committed=(0,)))

    assert threads
    assert get_ident() not in threads


async def test_a_wrong_setting_is_a_400_that_names_it(host: Host) -> None:
    with pytest.raises(InvalidRequest, match="presence_penalty") as raised:
        await plain(host, job_of(host, PROMPTS[0], 0.0, presence_penalty=3))

    assert raised.value.param == "presence_penalty"
