"""Sessions on Model Runner V2 that go on, are preempted, are cancelled, or have others beside
them: each says what vLLM itself says."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from itertools import cycle

import pytest

from speculation.draft_token import DraftToken
from speculation.drafting import DraftingSession
from speculation.wire import Framed
from tests.verifier.down import replies_of
from tests.verifier.vllm_target.conftest import ON_ENGINE
from tests.verifier.vllm_target.scripted import (
    Answer,
    Script,
    drafted,
    gone,
    moved,
    plain,
    served,
)
from tests.verifier.vllm_target.v2.tiny import (
    CASES,
    MAX_TOKENS,
    Text,
    own,
    session,
)
from verifier.vllm_target.serving.target import VllmTarget

pytestmark = ON_ENGINE
Texts = dict[tuple[str, int], Text]


async def run(
    target: VllmTarget, texts: Texts, name: str, number: int, script: Script, **fields: object
) -> Answer:
    request = session(target.facts, name, number, **fields)
    key = f"{name} {number} {script} {fields}"
    return await drafted(target, key, request, texts[name, number].tokens, script)


@pytest.mark.parametrize("name", ["T=1", "penalties", "min tokens", "schema"])
async def test_a_session_goes_on_after_the_committed_tokens(
    target: VllmTarget, texts: Texts, name: str
) -> None:
    whole = texts[name, 1].tokens

    answers = [
        await run(target, texts, name, 1, Script(wrong=0.3), committed=tuple(whole[:known]))
        for known in (1, len(whole) // 2, len(whole) - 1)
    ]

    assert [answer.tokens for answer in answers] == [whole] * 3


async def test_the_last_of_all_seeds_is_one(target: VllmTarget, texts: Texts) -> None:
    scripts = Script(wrong=0.3), Script(wrong=1.0)

    answers = [await run(target, texts, "T=1", 0, script, seed=2**64 - 1) for script in scripts]

    assert answers[0].tokens == answers[1].tokens


async def asynchronous_steps(target: VllmTarget) -> int:
    """Return the number of steps planned while the last one ran."""
    return (await target.figures())["asynchronous_steps"]


async def test_without_a_session_steps_are_planned_while_the_last_one_runs(
    target: VllmTarget, texts: Texts
) -> None:
    before = await target.figures()

    found = [await own(target, name, 2) for name in CASES]

    after = await target.figures()
    steps, ahead = (after[name] - before[name] for name in ("steps", "asynchronous_steps"))
    assert found == [texts[name, 2].tokens for name in CASES]
    assert ahead > 0.9 * steps > 20 * len(CASES)


async def test_vllms_own_requests_go_on_when_sessions_come_and_go(
    target: VllmTarget, texts: Texts
) -> None:
    """They are also preempted. Grammars shape none: on a busy CPU, asynchronous steps of a vLLM
    without us were seen to apply a mask otherwise than its synchronous ones."""
    names = [name for name in CASES if "schema" not in name]
    places = [(name, i % 3) for i, name in enumerate(names)]
    requested = [asyncio.create_task(own(target, *place)) for place in places]
    ahead = [await asynchronous_steps(target)]
    for i, length in enumerate((4, 7, 1)):
        while (now := await asynchronous_steps(target)) < ahead[-1] + 3:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        script = Script(wrong=0.2, seed=i)
        answer = await run(target, texts, "T=1", 1, script, max_tokens=length)

        ahead.append(now)
        assert answer.tokens == texts["T=1", 1].tokens[:length]
        assert not all(each.done() for each in requested)

    found = await asyncio.gather(*requested)
    assert dict(zip(places, found, strict=True)) == {p: texts[p].tokens for p in places}


async def paused(target: VllmTarget, name: str, number: int, key: str) -> list[int]:
    """Run a session for which no draft token comes."""
    request = session(target.facts, name, number)
    return (await plain(target, f"{key} {name} {number}", request)).tokens


async def test_a_session_without_draft_tokens_runs_on_before_its_results_are_known(
    target: VllmTarget, texts: Texts
) -> None:
    """A new session first waits for draft tokens; for how many steps depends on this host."""
    names = ("T=0", "T=1", "penalties", "min tokens")
    before = await target.figures()

    found = [await paused(target, name, 1, "alone") for name in names]

    after = await target.figures()
    assert found == [texts[name, 1].tokens for name in names]
    assert after["asynchronous_steps"] > before["asynchronous_steps"] + len(names)


async def test_steps_are_planned_ahead_beside_sessions_that_draft_and_rest(
    target: VllmTarget, texts: Texts
) -> None:
    """The sessions come and go at different times."""
    names = [name for name in CASES if "schema" not in name]
    places = [(name, i % 3) for i, name in enumerate(names)]

    async def drafting(i: int) -> list[int]:
        script = Script(wrong=0.2 * (i % 3), window=2 + 2 * i, seed=i, late_s=0.1 * (i % 2))
        fields = {"max_tokens": 12 + 2 * i}
        return (await run(target, texts, *places[i], script, **fields)).tokens

    before = await target.figures()
    requested = [asyncio.create_task(own(target, name, 2)) for name in names[:4]]
    sessions = [asyncio.create_task(drafting(i)) for i in range(6)]
    pauses = [asyncio.create_task(paused(target, *place, "beside")) for place in places[6:]]
    drafted_texts = await asyncio.gather(*sessions)
    meanwhile = await target.figures()
    found = await asyncio.gather(*requested)
    paused_texts = await asyncio.gather(*pauses)

    steps, ahead = (meanwhile[name] - before[name] for name in ("steps", "asynchronous_steps"))
    assert ahead > 0.8 * steps > 10
    assert dict(zip(names, found, strict=False)) == {n: texts[n, 2].tokens for n in names[:4]}
    assert paused_texts == [texts[place].tokens for place in places[6:]]
    assert drafted_texts == [
        texts[place].tokens[: 12 + 2 * i] for i, place in enumerate(places[:6])
    ]


async def test_the_host_knows_each_length_beside_draft_tokens_that_are_rejected(
    target: VllmTarget, texts: Texts
) -> None:
    """FlashInfer need not ask the device. Steps are planned ahead until one session waits for
    its draft tokens, so that some are rejected for certain."""
    workers, ahead = target._engine._llm, await asynchronous_steps(target)
    await workers.collective_rpc("compare_lengths")

    scripts = [Script(wrong=0.5, window=i + 2, seed=i) for i in range(3)]
    sessions = (run(target, texts, "T=1", i, script) for i, script in enumerate(scripts))
    await asyncio.gather(*sessions, own(target, "T=1", 2))
    planned_ahead = await asynchronous_steps(target) - ahead
    wrong = Script(wrong=1.0, late_s=0.05, at_once=True)
    waiting = await run(target, texts, "T=1", 1, wrong, fill="never")

    for steps, differing in await workers.collective_rpc("lengths"):
        assert (steps > MAX_TOKENS, differing) == (True, 0)
    assert planned_ahead > MAX_TOKENS // 2
    assert waiting.finish
    assert waiting.finish.totals.judged > waiting.finish.totals.accepted


async def test_beside_a_session_that_needs_each_result_steps_wait_for_it(
    target: VllmTarget, texts: Texts
) -> None:
    waiting_requests = session(target.facts, "T=0", 0, fill="never")
    async with aclosing(replies_of(target, "held", waiting_requests)) as replies:
        waiting = asyncio.create_task(anext(replies))
        await served(target, 1, within_s=60)
        before = await target.figures()

        found = await own(target, "T=1")

        after = await target.figures()
        waiting.cancel()
        await asyncio.wait([waiting])
    await gone(target)
    assert found == texts["T=1", 0].tokens
    assert after["asynchronous_steps"] == before["asynchronous_steps"]
    assert after["steps"] >= before["steps"] + len(found)


async def test_preempted_sessions_say_the_same(target: VllmTarget, texts: Texts) -> None:
    names = ("penalties", "min tokens", "T=1")
    before = (await target.figures())["preemptions"]

    answers = await asyncio.gather(
        *(
            run(target, texts, names[i % 3], 1, Script(wrong=1.0 - 0.1 * (i % 3), seed=i))
            for i in range(15)
        )
    )

    assert (await target.figures())["preemptions"] > before
    assert [a.tokens for a in answers] == [texts[names[i % 3], 1].tokens for i in range(15)]


async def test_a_pass_that_begins_inside_the_prompt_judges_its_drafts(
    target: VllmTarget, texts: Texts
) -> None:
    """With penalties, for which the draft tokens count."""
    whole = texts["penalties, T=0", 1].tokens
    edge = DraftingSession(max_tokens=len(whole), stop_tokens=())
    for token in whole[:8]:
        edge.extend(DraftToken(token, confidence=1.0))
    first = edge.flush()
    request = session(target.facts, "penalties, T=0", 1, fill="never", max_tokens=9)

    async def send() -> None:
        await served(target, 1, within_s=60)
        await target.push("inside", Framed(first))

    sending = asyncio.create_task(send())
    async with aclosing(replies_of(target, "inside", request)) as replies:
        messages = [reply.message async for reply in replies]
    await sending

    commit, _ = messages
    assert (commit.tokens, commit.accepted) == (tuple(whole[:9]), 8)


@pytest.mark.parametrize("known", [0, 9])
async def test_a_draft_token_that_was_rejected_elsewhere_is_not_judged_anew(
    target: VllmTarget, texts: Texts, known: int
) -> None:
    whole = texts["T=0", 1].tokens
    fields = {"judge": "separate", "rejected": True, "committed": tuple(whole[:known])}
    request = session(target.facts, "T=0", 1, **fields)

    reject, tokens = await moved(target, f"separate {known}", request, 3, whole[known])

    assert reject.head == ((whole[known], 1.0),)
    assert tokens == whole[known:]


async def test_cancelled_sessions_leave_the_others_as_they_were(
    target: VllmTarget, texts: Texts
) -> None:
    async def cancelled(number: int) -> None:
        request = session(target.facts, "T=1", number)
        async with aclosing(replies_of(target, f"cancelled {number}", request)) as replies:
            async for reply in replies:
                if getattr(reply.message, "start", 0) > 4 * number:
                    return

    *_, answer = await asyncio.gather(
        *(cancelled(number) for number in range(3)),
        run(target, texts, "T=1", 2, Script(wrong=0.2, window=4)),
    )

    assert answer.tokens == texts["T=1", 2].tokens
    await gone(target)


# The text of every session is the one that `vllm serve` itself gives with that seed.


SCRIPTS = (
    Script(late_s=0.05, at_once=True),
    Script(wrong=1.0, late_s=0.05, at_once=True),
    Script(wrong=0.15, window=5),
    Script(window=2),
    Script(wrong=0.1, late_s=0.2),
    Script(wrong=0.4, window=8),
    Script(window=1),
)


@pytest.mark.parametrize("name", CASES)
async def test_eight_sessions_of_different_drafts_at_once(
    target: VllmTarget, texts: Texts, name: str
) -> None:
    async def run(i: int, script: Script) -> Answer:
        number = i % 3
        fill = "never" if i < 2 else "auto"  # `never`: each pass judges a draft token
        request = session(target.facts, name, number, fill=fill, top_logprobs=2)
        oracle = texts[name, number].tokens
        return await drafted(target, f"{name} {i}", request, oracle, script)

    alone = plain(target, f"{name} alone", session(target.facts, name, 1))
    several = [run(i, script) for i, script in zip(range(7), cycle(SCRIPTS), strict=False)]
    bare, *answers = await asyncio.gather(alone, *several)

    assert bare.tokens == texts[name, 1].tokens
    assert [a.tokens for a in answers] == [texts[name, i % 3].tokens for i in range(7)]
    for i, answer in enumerate(answers):
        assert [each.logprob for each in answer.logprobs] == pytest.approx(
            texts[name, i % 3].logprobs, abs=1e-3
        )
    right, wrong = (answer.finish and answer.finish.totals for answer in answers[:2])
    assert right
    assert right.accepted == right.judged > len(answers[0].tokens) // 3
    assert wrong
    assert (wrong.accepted, wrong.judged > 0) == (0, True)


async def test_each_setting_changes_the_text_of_some_prompt(texts: Texts) -> None:
    said = [tuple(tuple(texts[name, i].tokens) for i in range(3)) for name in CASES]

    assert len(set(said)) == len(CASES)
    assert len(texts["T=1", 0].tokens) == MAX_TOKENS
