"""What an edge proposes without a draft model: what a grammar forces, and what is predicted."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from math import inf

import msgspec
import numpy as np
import pytest

from edge_agent.draft.drafter import NoDrafter, step_sampler
from edge_agent.draft_grammars import DraftGrammar, EdgeGrammars, GrammarProposer
from edge_agent.engine import EdgeEngine
from edge_agent.metrics import EdgeMetrics
from edge_agent.proposals import ProposalFinder
from edge_agent.settings import EdgeSettings
from gateway.errors import InvalidRequest
from gateway.ports import Delta, Job
from local_models.errors import GrammarFailed
from local_models.grammars import Grammar, GrammarState
from local_models.guidance import grammar_text
from local_models.tokenizer import Tokenizer
from speculation import coupled
from speculation.draft_machine import DraftMachine
from speculation.draft_policy import StreamPolicy
from speculation.draft_token import DraftToken
from speculation.lookup import PromptLookup
from speculation.messages import Commit, Draft, Finish, Sampling
from speculation.model_facts import Limits, ModelFacts, TokenId
from speculation.proposer import Latencies
from tests.edge_agent.fakes import (
    FACTS,
    JOB,
    FakeVerifiers,
    Paired,
    ScriptedLink,
    deltas,
    engine,
    on,
    opened,
    quiet,
    scripted,
)
from tests.local_models.grammars.small import STOP, TOKENIZER, TOKENS, V, asking, greedy
from tests.speculation import edges

CHOICE = {"choice": ["name: abab", "name: the"]}
FORCED = greedy("name: ")


class SmallPaired(Paired):
    async def __call__(self, vocabulary: str) -> Tokenizer:
        return TOKENIZER


@pytest.mark.system
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
    verifiers = FakeVerifiers(scripted(quiet, Finish("stop")))
    edge = engine(verifiers, metrics, NoDrafter(), settings, SmallPaired())

    await deltas(edge.generate(replace(JOB, extras={"structured_outputs": CHOICE})))
    await edge.close()

    assert verifiers.link.drafted == drafted
    assert metrics.looked_up._value.get() == len(drafted)


@pytest.mark.system
async def test_a_grammar_that_cannot_be_compiled_is_an_error_before_the_session() -> None:
    verifiers = FakeVerifiers(scripted(Finish("stop")))
    edge = engine(verifiers, drafter=NoDrafter(), paired=SmallPaired())
    wrong = {"json": {"properties": {"a": {"type": "banana"}}}}

    with pytest.raises(InvalidRequest, match="banana") as raised:
        await deltas(edge.generate(replace(JOB, extras={"structured_outputs": wrong})))
    await edge.close()

    assert raised.value.param == "structured_outputs.json.properties.a"
    assert verifiers.opened == []


@pytest.mark.system
async def test_where_no_grammar_can_be_tried_drafts_are_free(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sys.executable", "/nowhere")
    finder = ProposalFinder(EdgeSettings(), SmallPaired())

    assert (await finder.find(asking(**CHOICE), JOB, FACTS)).grammar is None


@pytest.mark.system
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


# What a grammar forces is drafted without a step, and nothing that it does not allow.

LATENCIES = Latencies(rtt_s=0.01, pass_s=0.01, draft_s=inf)
TEXT = (10, 11, 12, 20, 21, 13, 14)
FREE = (20, 21)


@dataclass
class Texts:
    """A grammar of the texts that equal TEXT but for any token from 20 to 29 at places 3, 4."""

    output: list[TokenId] = field(default_factory=list)

    def follow(self, output: Sequence[TokenId]) -> None:
        self.output = list(output)

    def forced(self) -> TokenId | None:
        at = len(self.output)
        return TEXT[at] if at < len(TEXT) and TEXT[at] not in FREE else None

    def count_allowed(self, tokens: Sequence[TokenId]) -> int:
        wanted = [*self.output, *tokens]
        fits = [
            a == b or (b in FREE and 20 <= a < 30) for a, b in zip(wanted, TEXT, strict=False)
        ]
        return (fits.index(False) if False in fits else len(fits)) - len(self.output)


def drafting(*, drafts: bool = False) -> DraftMachine:
    lookup = GrammarProposer(Texts(), PromptLookup((1,)))
    return edges.machine(
        StreamPolicy(), limits=Limits(), drafts=drafts, lookup=lookup, max_tokens=len(TEXT)
    )


def test_what_is_forced_is_sent_without_a_draft_model() -> None:
    machine = drafting()

    outcome = machine.next(0.0, busy=False)

    assert outcome.send == (Draft(0, 0, 0, TEXT[:3], pauses=True),)
    assert [drafted.confidence for drafted in machine.session.chain] == [1.0] * 3
    assert (machine.counts.looked_up, machine.counts.drafted) == (3, 0)


def test_the_draft_model_is_asked_only_where_the_grammar_leaves_a_choice() -> None:
    machine, now, asked = drafting(drafts=True), 0.0, list[int]()
    while (step := machine.next(now, busy=False).step) is not None:
        asked.append(len(step.context))
        machine.drafted(step, [DraftToken(TEXT[len(step.context)], 0.9)], now)
        now += 0.01

    assert asked == [3, 4]
    assert machine.session.context == list(TEXT)


def test_after_a_wrong_draft_token_it_follows_the_text() -> None:
    machine = drafting(drafts=True)
    step = machine.next(0.0, busy=False).step
    assert step is not None
    machine.drafted(step, [DraftToken(20, 0.9)], 0.0)

    machine.received(Commit(0, 0, (10, 11, 12, 25, 26)))
    outcome = machine.next(0.1, busy=False)

    assert [each.tokens for each in outcome.send if isinstance(each, Draft)] == [TEXT[5:]]
    assert machine.session.context == [10, 11, 12, 25, 26, 13, 14]


def test_what_followed_before_is_proposed_only_as_far_as_the_grammar_allows() -> None:
    """Three agreeing tokens are enough for a lookup."""
    allowed = GrammarProposer(Texts(), PromptLookup([*TEXT[:3], 22, 99, 5]))
    barred = GrammarProposer(Texts(), PromptLookup([*TEXT[:3], 99, 5]))
    for each in (allowed, barred):
        each.follow(TEXT[:3], [])

    found = allowed.propose(LATENCIES)

    assert found is not None
    assert found.token == 22
    assert barred.propose(LATENCIES) is None


def test_the_draft_model_reads_ahead_only_what_the_grammar_allows() -> None:
    proposer = GrammarProposer(Texts(), PromptLookup([*TEXT[:3], 22, 99, 5, 6, 7, 8]))
    proposer.follow(TEXT[:3], [])

    assert proposer.ahead(Latencies(0.01, 0.01, 0.1)) == [22]


def test_without_lookup_only_what_is_forced_is_proposed() -> None:
    proposer = GrammarProposer(Texts(), None)

    proposer.follow(TEXT[:3], [])

    assert proposer.propose(LATENCIES) is None
    assert proposer.ahead(LATENCIES) == []
    proposer.observe_reading(2, 0.1, 0.1)


# A prediction, of the client or of an edge with a cache, travels to the verifier.

NOVEL = "Call me Ishmael. Some years ago"
PREDICTED = replace(JOB, extras={"prediction": NOVEL})


async def test_what_became_of_it_is_told_with_every_delta() -> None:
    right, wrong = tuple(NOVEL[:8].encode()), (99, 98, 97)
    script = scripted(quiet, Commit(0, 0, right, 8), Commit(0, 8, wrong), Finish("stop"))

    received = await deltas(engine(FakeVerifiers(script)).generate(PREDICTED))

    counted = [delta.statistics for delta in received if delta.statistics]
    assert [each.accepted_prediction_tokens for each in counted] == [8, 8, 8]
    assert counted[-1].rejected_prediction_tokens >= 8


@pytest.mark.parametrize(
    ("settings", "text", "sent"),
    [
        (EdgeSettings(lookup=False), NOVEL, (True, NOVEL)),
        (EdgeSettings(), "", (True, "")),
        (EdgeSettings(judge="separate"), NOVEL, (False, "")),
        (EdgeSettings(ngram_drafts=False), NOVEL, (False, "")),
    ],
)
async def test_only_where_any_draft_token_is_exact_the_verifier_proposes_some(
    settings: EdgeSettings, text: str, sent: tuple[bool, str]
) -> None:
    job = replace(JOB, extras={"prediction": text})

    asked = await opened(job, settings, NoDrafter())

    assert (asked.ngram_drafts, bytes(asked.predicted).decode()) == sent
    assert asked.sampling.extras == {}


# --- an edge with a cache predicts what it answered last when the same is asked again


class Owner:
    name = identity = "somebody"


ANSWER = tuple(range(100, 112))
KEPT = EdgeSettings(answer_cache_tokens=1000)
ASKED = replace(JOB, prompt=tuple(range(30)), owner=Owner())
OTHER = msgspec.structs.replace(FACTS, vocabulary="another")


async def answered(settings: EdgeSettings = KEPT) -> tuple[EdgeEngine, FakeVerifiers]:
    """Return an engine that has answered ASKED, and its verifiers."""
    verifiers = FakeVerifiers(scripted(Commit(0, 0, ANSWER), Finish("stop")))
    edge = engine(verifiers, settings=settings)
    await deltas(edge.generate(ASKED))
    assert verifiers.opened[0].predicted == ()
    return edge, verifiers


async def asked_again(
    edge: EdgeEngine, verifiers: FakeVerifiers, job: Job = ASKED
) -> list[Delta]:
    script = scripted(Commit(0, 0, ANSWER, verifier_accepted=11), Finish("stop"))
    verifiers.links = [ScriptedLink(script)]
    return await deltas(edge.generate(job))


PREDICTED_TOO = replace(ASKED, extras={"prediction": "Ishmael"})
KEPT_SEPARATELY = KEPT.model_copy(update={"judge": "separate"})
KEPT_ALONE = KEPT.model_copy(update={"ngram_drafts": False})


@pytest.mark.parametrize(
    ("job", "settings", "known", "predicted"),
    [
        (ASKED, KEPT, FACTS, ANSWER),
        (replace(ASKED, owner=Owner()), KEPT, FACTS, ()),
        (replace(ASKED, owner=None), KEPT, FACTS, ()),
        (ASKED, KEPT, OTHER, ()),
        (ASKED, EdgeSettings(answer_cache_tokens=0), FACTS, ()),
        (ASKED, KEPT_SEPARATELY, FACTS, ()),
        (ASKED, KEPT_ALONE, FACTS, ()),
        (PREDICTED_TOO, KEPT, FACTS, tuple(b"Ishmael")),
    ],
    ids=[
        "the same question", "another key", "nobody in particular", "another target",
        "no cache", "separate", "the verifier does not draft", "the client's comes first",
    ],
)  # fmt: skip
async def test_the_answer_is_predicted_when_the_same_is_asked_again(
    job: Job, settings: EdgeSettings, known: ModelFacts, predicted: tuple[TokenId, ...]
) -> None:
    edge, verifiers = await answered(settings)
    verifiers.known = known

    await asked_again(edge, verifiers, job)

    assert verifiers.opened[1].predicted == predicted


async def test_what_the_cache_expects_is_not_counted_as_a_prediction_of_the_clients() -> None:
    received = await asked_again(*await answered())

    assert [d.statistics.accepted_prediction_tokens for d in received if d.statistics] == [0, 0]


async def test_an_answer_that_was_cancelled_is_kept_as_far_as_it_came() -> None:
    verifiers = FakeVerifiers(scripted(Commit(0, 0, ANSWER[:5]), on(asyncio.Event())))
    edge = engine(verifiers, settings=KEPT)
    async with asyncio.timeout(2), aclosing(edge.generate(ASKED)) as stream:
        await anext(stream)

    await asked_again(edge, verifiers)

    assert verifiers.opened[1].predicted == ANSWER[:5]


@pytest.mark.parametrize(
    ("owner", "predicted"), [(ASKED.owner, ()), (Owner(), ANSWER)], ids=["its own", "another's"]
)
async def test_an_owner_whose_cache_is_emptied_has_nothing_predicted(
    owner: Owner, predicted: tuple[TokenId, ...]
) -> None:
    edge, verifiers = await answered()

    await edge.forget(owner)
    await asked_again(edge, verifiers)

    assert verifiers.opened[1].predicted == predicted
    assert verifiers.salts == [None], "the verifier forgets too"
