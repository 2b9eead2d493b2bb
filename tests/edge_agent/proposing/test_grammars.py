"""The edge holds the grammar of an answer, and no grammar can end the answer there."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import msgspec
import numpy as np
import pytest

from picospec.edge_agent.draft.drafter import NoDrafter, step_sampler
from picospec.edge_agent.metrics import EdgeMetrics
from picospec.edge_agent.proposals import DraftGrammar, EdgeGrammars, ProposalFinder
from picospec.edge_agent.settings import EdgeSettings
from picospec.gateway.errors import InvalidRequest
from picospec.models.errors import GrammarFailed
from picospec.models.grammars import Grammar, GrammarState, grammar_text
from picospec.models.tokenizer import Tokenizer
from picospec.speculation import coupled
from picospec.speculation.messages import Finish, Limits, ModelFacts, Open, Sampling
from tests.edge_agent.engines import FACTS, JOB, FakeUplink, Paired, deltas, engine
from tests.edge_agent.fakes import quiet, scripted
from tests.models.grammars.small import STOP, TOKENIZER, TOKENS, V, greedy

CHOICE = {"choice": ["name: abab", "name: the"]}
FORCED = greedy("name: ")


class SmallPaired(Paired):
    async def __call__(self, vocabulary: str) -> Tokenizer:
        return TOKENIZER


def asking(**asked: object) -> Open:
    raw = {"structured_outputs": msgspec.Raw(msgspec.json.encode(asked))}
    return Open("m", "v", (1,), Sampling(extras=raw), 3, 20, (STOP,))


@pytest.mark.parametrize(
    ("settings", "drafted"),
    [
        (EdgeSettings(), FORCED),
        (EdgeSettings(lookup=False), FORCED),
        (EdgeSettings(grammars=False), []),
        (EdgeSettings(judge="separate"), []),
    ],
)
async def test_what_the_grammar_forces_is_drafted_even_without_a_draft_model(
    metrics: EdgeMetrics, settings: EdgeSettings, drafted: list[int]
) -> None:
    uplink = FakeUplink(scripted(quiet, Finish("stop")))
    edge = engine(uplink, metrics, NoDrafter(), settings, SmallPaired())

    await deltas(edge.generate(replace(JOB, extras={"structured_outputs": CHOICE})))
    await edge.close()

    assert uplink.link.drafted == drafted
    assert metrics.looked_up._value.get() == len(drafted)


async def test_a_grammar_that_cannot_be_compiled_is_an_error_before_the_session() -> None:
    uplink = FakeUplink(scripted(Finish("stop")))
    edge = engine(uplink, drafter=NoDrafter(), paired=SmallPaired())
    wrong = {"json": {"properties": {"a": {"type": "banana"}}}}

    with pytest.raises(InvalidRequest, match="banana") as raised:
        await deltas(edge.generate(replace(JOB, extras={"structured_outputs": wrong})))
    await edge.close()

    assert raised.value.param == "structured_outputs.json.properties.a"
    assert uplink.opened == []


async def test_where_no_grammar_can_be_tried_drafts_are_free(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sys.executable", "/nowhere")
    finder = ProposalFinder(EdgeSettings(), SmallPaired())

    assert (await finder.find(asking(**CHOICE), JOB, FACTS)).grammar is None


async def test_answers_share_what_was_compiled_for_the_same_tokenizer() -> None:
    grammars, other = EdgeGrammars(), type(TOKENIZER)(TOKENIZER._encoder, None)

    first, *others = await asyncio.gather(
        *(grammars.compile(asking(**CHOICE), TOKENIZER) for _ in range(4))
    )
    others.append(await grammars.compile(asking(**CHOICE), TOKENIZER))
    second = await grammars.compile(asking(**CHOICE), other)
    await grammars.close()

    assert all(each is first for each in others)
    assert second is not first


class Failing(GrammarState):
    def follow(self, output: Sequence[int]) -> None:
        raise GrammarFailed("too large")


def test_a_grammar_that_fails_leaves_the_drafts_free(monkeypatch: pytest.MonkeyPatch) -> None:
    grammar = Grammar(TOKENS, grammar_text("choice", ["ab"]))
    monkeypatch.setattr(grammar, "begin", lambda: Failing(grammar, grammar._beginning))
    drafts, logits = DraftGrammar(grammar), np.zeros(V, np.float32)

    assert drafts.mask(logits, []) is logits
    drafts.follow([1])
    assert drafts.forced() is None
    assert drafts.count_allowed([1, 2]) == 2


def test_a_draft_token_is_one_that_may_follow_the_text_before_it() -> None:
    """The row after two tokens read ahead follows these."""
    grammar = Grammar(TOKENS, grammar_text("regex", "[ab](12|[cd])e"))
    facts = ModelFacts("m", V, "v", 64, [STOP], Limits(), ["coupled"], [])
    likely = np.arange(V, dtype=np.float32)
    draw = coupled.sampler(Sampling(temperature=0), 3, 1)
    sampler = step_sampler(asking(), facts, draw, V, DraftGrammar(grammar).mask)

    drawn = [sampler(greedy("ac"))(likely, position).token for position in (1, 2)]
    ended = sampler(greedy("ade"))(likely, 3).token

    assert [*drawn, ended] == [*greedy("12"), *greedy("e"), STOP]


def test_a_draft_model_that_leaves_the_grammar_may_come_back() -> None:
    grammar = Grammar(TOKENS, grammar_text("choice", ["ab1", "ab2"]))
    drafts, logits = DraftGrammar(grammar), np.zeros(V, np.float32)

    assert drafts.mask(logits, greedy("ba")) is logits
    drafts.follow(greedy("ab"))

    assert drafts.count_allowed(greedy("1")) == 1
    assert drafts.mask(logits, greedy("ab")) is not logits
    assert not grammar.is_spent
