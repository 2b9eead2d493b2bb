"""Whatever a client sends gets a verdict, and the next client is served."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import numpy as np
import pytest
import pytest_asyncio

from gateway.turns import Turns
from local_models import checker
from local_models import compiler as limits
from local_models.checker import Checker
from local_models.compiler import GrammarCompiler
from local_models.confined import Worker
from local_models.constraints import Constraint
from local_models.errors import CannotCheck, InvalidGrammar
from local_models.trial import TrialOutcome
from tests.local_models.grammars.small import (
    COMPILED,
    LIMITS,
    REJECTED,
    STOP,
    TOKENIZER,
    V,
    generated,
)

GOOD = b'{"choice": ["ab", "ba"]}'


@pytest_asyncio.fixture
async def compiler() -> AsyncIterator[GrammarCompiler]:
    made = GrammarCompiler(TOKENIZER, Turns(1, limits.MAX_WAITING, limits.WAITING).take)
    yield made
    await made.close()


def asked(kind: str, value: object) -> bytes:
    return json.dumps({kind: value}).encode()


async def test_a_grammar_is_compiled_once_for_all_who_ask(compiler: GrammarCompiler) -> None:
    several = await asyncio.gather(*(compiler.compile(GOOD) for _ in range(8)))

    assert set(map(id, several)) == {id(compiler.compiled(GOOD))}
    assert generated(several[0], min)[-1] == STOP


async def test_a_grammar_that_is_spent_is_compiled_anew(compiler: GrammarCompiler) -> None:
    first = await compiler.compile(GOOD)
    first.is_spent = True

    assert compiler.compiled(GOOD) is None
    assert await compiler.compile(GOOD) is not first


async def test_a_host_too_busy_to_try_a_grammar_condemns_none(
    compiler: GrammarCompiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    await compiler.check(asked("choice", ["a"]))
    monkeypatch.setattr(checker, "ANSWER_TIMEOUT_S", 0.0)
    with pytest.raises(CannotCheck, match="no answer within"):
        await compiler.check(GOOD)

    monkeypatch.undo()

    await compiler.check(GOOD)


async def test_whatever_is_asked_gets_a_verdict_and_others_are_served(
    compiler: GrammarCompiler,
) -> None:
    for name, (kind, value, reason) in REJECTED.items():
        with pytest.raises(InvalidGrammar) as raised:
            await compiler.check(asked(kind, value))
        said = f"{raised.value.where}: {raised.value.reason}"
        assert reason in said or LIMITS in said, name  # on a slow machine any may take too long
    for kind, value in COMPILED.values():
        grammar = await compiler.compile(asked(kind, value))
        grammar.begin().mask(np.zeros(V, np.float32), [])

    await compiler.compile(GOOD)


async def test_a_verdict_is_kept(
    compiler: GrammarCompiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = asked("regex", "(")
    for each in (wrong, GOOD):
        try:
            await compiler.check(each)
        except InvalidGrammar:
            continue
    await compiler.close()
    monkeypatch.setattr("sys.executable", "/nowhere")

    assert await compiler.check(GOOD)
    with pytest.raises(InvalidGrammar, match="unclosed"):
        await compiler.check(wrong)
    with pytest.raises(CannotCheck):
        await compiler.check(asked("regex", "new"))


async def test_a_process_that_was_killed_refuses_nobody(compiler: GrammarCompiler) -> None:
    await compiler.check(GOOD)
    worker = compiler._checker._worker
    assert worker is not None
    worker.process.kill()
    worker.process.wait()

    assert "next" in await compiler.check(asked("regex", "next"))


async def test_each_owners_grammar_is_tried_whoever_else_has_asked_for_it(
    compiler: GrammarCompiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = list[Constraint]()
    check = Checker.check

    async def noting(own: Checker, constraint: Constraint) -> TrialOutcome:
        tried.append(constraint)
        return await check(own, constraint)

    monkeypatch.setattr(Checker, "check", noting)
    for owner in ("ann", "ann", "eve", None, "eve"):
        await compiler.compile(GOOD, owner)
        await compiler.check(GOOD, owner)

    assert len(tried) == 3


async def test_no_owner_gets_the_grammar_that_was_compiled_for_another(
    compiler: GrammarCompiler,
) -> None:
    ann, eve = [await compiler.compile(GOOD, owner) for owner in ("ann", "eve")]

    assert ann is not eve
    assert compiler.compiled(GOOD, "ann") is ann


async def test_a_grammar_whose_processes_end_is_refused_and_tried_again_later(
    compiler: GrammarCompiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def ends(worker: Worker, *_: object) -> TrialOutcome:
        worker.end()
        raise EOFError

    async def start(_: Checker) -> Worker:
        return Worker("local_models.trial")

    with monkeypatch.context() as broken:
        broken.setattr(Checker, "_ask", lambda _, worker, *more: ends(worker, *more))
        broken.setattr(Checker, "_start", start)
        with pytest.raises(InvalidGrammar, match="takes more than"):
            await compiler.check(GOOD)

    assert await compiler.check(GOOD)


async def test_one_who_goes_away_leaves_no_answer_to_others(compiler: GrammarCompiler) -> None:
    await compiler.check(GOOD)
    leaving = asyncio.create_task(compiler.check(asked("regex", "(((a{99}){99}){99}){99}")))
    await asyncio.sleep(0.02)
    leaving.cancel()
    await asyncio.wait([leaving])

    text = await compiler.check(asked("regex", "after"))

    assert "after" in text


async def test_what_is_forgotten_is_the_oldest(
    compiler: GrammarCompiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "COMPILED", 2)
    several = [asked("regex", f"a{i}") for i in range(3)]

    for each in several:
        await compiler.compile(each)

    assert [compiler.compiled(each) is None for each in several] == [True, False, False]
