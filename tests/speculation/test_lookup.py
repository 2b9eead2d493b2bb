"""What was written before, or is predicted, is proposed where that pays."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from math import inf
from random import Random
from time import process_time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speculation.answer_cache import ANSWER_CACHE_LENGTHS, CONTEXT, AnswerCache
from speculation.draft_token import DraftToken
from speculation.drafting import DraftingSession
from speculation.judge import Judgement
from speculation.lookup import (
    MATCH_PRIORS,
    MIN_UNREAD_LENGTH,
    PromptLookup,
    ahead_size,
    pays_unread,
)
from speculation.messages import Commit, Open, Sampling
from speculation.model_facts import Limits, TokenId
from speculation.ngrams import Index, Match, PromptGrams, keys, resumption
from speculation.prediction import SURE, Prediction
from speculation.proposer import Latencies
from speculation.verify_session import VerifyingSession
from tests.speculation.edges import chain_of
from tests.speculation.joined import joining
from tests.speculation.small_models import model, opening, plain, search, texts

COPIED = tuple(range(100, 140))
"""No n-gram is in it twice."""

LIMITED = Latencies(rtt_s=0.05, pass_s=0.02, draft_s=0.01)
"""A pass holds two draft steps: drafting is what limits."""

NO_MODEL = Latencies(rtt_s=0.05, pass_s=0.02, draft_s=inf)


class Answer:
    """It is a session with the lookup that follows it."""

    def __init__(self, prompt: Sequence[TokenId], *text: TokenId) -> None:
        self.session = DraftingSession(max_tokens=1000, stop_tokens=(777,))
        self.lookup = PromptLookup(prompt)
        self.commit(*text)

    def commit(self, *tokens: TokenId) -> None:
        session = self.session
        session.receive(Commit(session.epoch, len(session.committed), tokens))

    def draft(self, *tokens: TokenId) -> None:
        for token in tokens:
            self.session.extend(DraftToken(token, 1.0))

    def propose(self, latencies: Latencies) -> DraftToken | None:
        self.lookup.follow(self.session.committed, self.session.chain)
        return self.lookup.propose(latencies)

    def ahead(self, latencies: Latencies) -> list[TokenId]:
        self.lookup.follow(self.session.committed, self.session.chain)
        return self.lookup.ahead(latencies)


EVENTS = ["draft", "draft", "draft", "right", "lower", "higher", "fill"]
"""Lower and higher tokens than that of the chain are wrong."""


@given(
    prompt=texts,
    events=st.lists(
        st.tuples(st.sampled_from(EVENTS), st.integers(0, 2)), min_size=4, max_size=60
    ),
)
@settings(max_examples=300)
def test_it_follows_a_session_through_commits_breaks_and_fill_ins(
    prompt: list[int], events: list[tuple[str, int]]
) -> None:
    answer = Answer(prompt)

    for kind, token in events:
        chain = chain_of(answer.session)
        if kind == "draft":
            answer.draft(1 + token)
        elif kind == "right" and chain:
            answer.commit(*chain[: token + 1])
        elif kind in ("lower", "higher") and chain:
            answer.commit(*chain[:token], 0 if kind == "lower" else 4)
        elif kind == "fill":
            answer.commit(*chain, token)
        if token:  # else it lags
            text = [*prompt, *answer.session.context]
            found, proposed = search(text), answer.propose(NO_MODEL)

            expected = found if found and found.length >= MIN_UNREAD_LENGTH else None
            assert (proposed and proposed.token) == (expected and expected.token)
            assert answer.lookup._index.tokens == text


def test_the_confidence_is_how_often_matches_of_that_length_were_right() -> None:
    answer = Answer(COPIED, *COPIED[:3])
    first = answer.propose(NO_MODEL)

    for at in range(3, 7):  # never proposed, and yet they would have been right
        answer.commit(COPIED[at])

    learned = answer.propose(NO_MODEL)
    assert first is not None
    assert learned is not None
    assert first.confidence == MATCH_PRIORS[3][0]
    right, seen = MATCH_PRIORS[3]
    assert learned.confidence == pytest.approx((right * seen + 4) / (seen + 4))


def test_matches_that_are_wrong_switch_it_off_and_right_ones_on_again() -> None:
    numbers = count(1000)
    answer = Answer((*COPIED, *COPIED), *COPIED[:16])
    assert answer.propose(LIMITED)

    for _ in range(3):  # sixteen tokens are the same, the next is another
        answer.commit(next(numbers), *COPIED[:16])
    assert answer.propose(LIMITED) is None
    for _ in range(10):
        answer.commit(*COPIED, *COPIED[:16])

    assert answer.propose(LIMITED) is not None


@pytest.mark.parametrize(
    ("confidence", "latencies", "pays"),
    [
        (0.99, LIMITED, True),
        (0.99, Latencies(0.05, 0.0, 0.01), False),  # no pass seen yet
        (0.99, Latencies(0.05, 0.02, 0.0), False),  # no step seen yet
        (0.99, Latencies(0.05, 0.1, 0.01), False),  # the draft model fills a pass
        (0.99, Latencies(0.8, 0.02, 0.01), False),  # a wrong token would cost too much
        (0.7, LIMITED, False),  # a wrong one is likely
        (0.7, NO_MODEL, True),
        (0.99, Latencies(0.8, 0.2, inf), True),
    ],
)
def test_an_unread_token_pays_where_drafting_limits_and_a_wrong_one_costs_little(
    confidence: float, latencies: Latencies, pays: bool
) -> None:
    assert pays_unread(confidence, latencies, read_s=0.0) is pays


def test_a_draft_model_that_reads_as_slowly_as_it_drafts_gains_nothing() -> None:
    slow, fast = Answer(COPIED, *COPIED[:16]), Answer(COPIED, *COPIED[:16])
    slow.lookup.observe_reading(9, 0.1, 0.01)
    fast.lookup.observe_reading(9, 0.012, 0.01)

    assert slow.propose(LIMITED) is None
    assert fast.propose(LIMITED) is not None


def test_a_step_over_one_token_or_before_any_other_teaches_no_reading_time() -> None:
    answer = Answer(COPIED, *COPIED[:16])

    answer.lookup.observe_reading(0, 9.9, 0.01)
    answer.lookup.observe_reading(9, 9.9, 0.0)

    assert answer.propose(LIMITED) is not None


@pytest.mark.parametrize(
    ("right", "read_s", "tokens"),
    [
        (1.0, 0.005, 15),
        (0.9, 0.005, 7),
        (0.7, 0.005, 3),
        (0.7, 0.001, 7),
        (0.7, 0.008, 0),
        (0.2, 0.005, 0),
        (1.0, 0.02, 0),  # slower than drafting
    ],
)
def test_more_is_read_the_likelier_it_is_right_and_the_less_reading_takes(
    right: float, read_s: float, tokens: int
) -> None:
    assert ahead_size(right, Latencies(0.05, 0.1, 0.01), read_s=read_s) == tokens


@pytest.mark.parametrize("draft_s", [0.0, inf])
def test_nothing_is_read_ahead_without_a_draft_model_or_before_its_first_step(
    draft_s: float,
) -> None:
    assert Answer(COPIED, *COPIED[:16]).ahead(Latencies(0.05, 0.1, draft_s)) == []


def test_what_is_read_ahead_is_what_followed_to_the_end_of_the_text() -> None:
    answer = Answer((*COPIED, 1, 2), *COPIED[:16])
    latencies = Latencies(0.05, 0.1, 0.01)  # the draft model fills a pass
    assert answer.propose(latencies) is None

    assert answer.ahead(latencies) == list(COPIED[16:31])
    answer.draft(*COPIED[16:37])
    assert answer.ahead(latencies) == [*COPIED[37:], 1, 2, *COPIED[:10]]

    assert Answer((5, 5, 5, 5)).ahead(latencies) == [5]  # as many as there are


def test_a_match_too_short_to_propose_is_read_where_reading_costs_next_to_nothing() -> None:
    answer = Answer((7, 1, 2, 3, 4, 5), 7)

    assert answer.propose(NO_MODEL) is None
    assert answer.ahead(LIMITED) == []
    answer.lookup.observe_reading(3, 0.0101, 0.01)
    assert answer.ahead(LIMITED) == [1, 2, 3]


def test_after_a_break_what_the_chain_went_on_with_is_read() -> None:
    answer = Answer((900, 901))
    answer.draft(*range(10, 20))
    assert answer.ahead(LIMITED) == []

    answer.commit(10, 11, 99)  # in place of 12
    assert answer.ahead(LIMITED) == []
    answer.draft(13)
    assert answer.ahead(LIMITED) == []  # one token the same: too little
    answer.draft(14)
    assert answer.ahead(LIMITED) == [15, 16, 17, 18, 19]  # to its end

    answer.lookup.observe_reading(3, 0.022, 0.01)
    assert answer.ahead(LIMITED) == [15, 16, 17]  # reading is dearer than it seemed


def test_a_chain_that_broke_at_its_last_token_leaves_the_one_before_to_read() -> None:
    answer = Answer((900, 901))
    answer.draft(*range(10, 20))
    answer.ahead(LIMITED)
    answer.commit(99)
    answer.draft(11)
    answer.ahead(LIMITED)

    answer.commit(98)
    answer.draft(12, 13)

    assert answer.ahead(LIMITED) == list(range(14, 20))


# The index of n-grams, and the cache of answers.


@given(texts, st.lists(st.tuples(st.integers(0, 60), texts), max_size=5))
def test_a_text_cut_back_is_as_if_the_rest_had_never_been_there(
    text: list[int], edits: list[tuple[int, list[int]]]
) -> None:
    index = Index(text)

    for length, more in edits:
        index.truncate(length)
        text = text[:length] + more
        for token in more:
            index.append(token)

    again = Index(text)
    assert (index.tokens, index._after, index._replaced, index._ending) == (
        again.tokens, again._after, again._replaced, again._ending,
    )  # fmt: skip


@given(texts, st.lists(st.tuples(st.integers(0, 60), texts), max_size=5))
def test_matches_behind_a_prompt_are_those_of_the_whole_text(
    prompt: list[int], edits: list[tuple[int, list[int]]]
) -> None:
    index, text = Index(prompt=PromptGrams(prompt)), list(prompt)

    assert index.match() == search(text)
    for length, more in edits:
        index.truncate(len(prompt) + length)
        text = text[: len(prompt) + length]
        for token in more:
            text.append(token)
            index.append(token)
            assert index.match() == search(text)
            assert index.keys == keys(text)


@pytest.mark.parametrize("length", [0, 1, 2, 17, 9000])
def test_the_n_grams_of_a_prompt_are_those_of_a_text_that_grew(length: int) -> None:
    chance = Random(length)
    prompt = [chance.randrange(4) for _ in range(length)]

    places = chance.sample(range(length + 1), min(length, 50))

    offset, grown = (
        [made(tokens).match() for tokens in (prompt[:at] for at in places)]
        for made in (lambda tokens: Index(prompt=PromptGrams(tokens)), Index)
    )

    assert offset == grown


@pytest.mark.long
def test_the_n_grams_of_a_long_prompt_take_little_longer_than_its_tokens() -> None:
    """A verifier makes them in the thread that starts passes."""
    chance = Random(1)
    prompt = tuple(chance.randrange(150_000) for _ in range(8192))

    def least_s(make: Callable[[], object]) -> float:
        def took_s() -> float:
            began = process_time()
            make()
            return process_time() - began

        return min(took_s() for _ in range(20))

    assert least_s(lambda: PromptGrams(prompt)) < 15 * least_s(lambda: np.array(prompt))


@pytest.mark.parametrize(
    ("dropped", "text", "at", "place"),
    [
        ([5, 6, 7, 8], [1, 2, 9], 2, None),  # 9 in place of 5
        ([5, 6, 7, 8], [1, 2, 9, 6], 2, Match(7, 2, 1)),
        ([5, 6, 7, 8], [1, 2, 9, 6, 7], 2, Match(8, 3, 2)),
        ([5, 6, 7, 8], [1, 2, 6], 2, Match(7, 2, 1)),  # 5 left out
        ([5, 6, 7, 8], [1, 2, 9, 5], 2, Match(6, 1, 1)),  # 9 put in
        ([5, 6, 7, 8], [1, 2, 9, 6, 7, 8], 2, None),  # its end
        ([5, 1, 2, 3, 4, 8], [0, 9, 1, 2, 3, 4], 1, Match(8, 5, 3)),
        ([5, 6, 7, 6, 8, 6, 9], [0, 4, 3, 2, 6], 1, Match(8, 4, 1)),  # the nearest of three
        ([5, 6, 7, 6, 8, 7, 6, 9], [0, 4, 3, 7, 6], 1, Match(8, 4, 2)),
        ([5, 6, 7, 1, 6, 8], [0, 4, 1, 6], 1, Match(8, 5, 2)),  # more agreed, not nearer
        ([], [1, 2], 0, None),
    ],
)
def test_a_chain_that_broke_goes_on_where_most_is_the_same_then_nearest(
    dropped: list[int], text: list[int], at: int, place: Match | None
) -> None:
    assert resumption(dropped, text, at, most=3) == place


# A cache continues a text as the answers that it holds did, and holds a bounded number.

TEXTS = st.lists(
    st.tuples(
        st.lists(st.integers(0, 2), max_size=20),
        st.lists(st.integers(0, 2), min_size=1, max_size=40),
    ),
    max_size=5,
)
UNDRAFTED = Latencies(rtt_s=0.05, pass_s=0.07, draft_s=inf)
READING = Latencies(rtt_s=0.05, pass_s=0.2, draft_s=0.02)
PROMPT = tuple(range(30))
ANSWER = tuple(range(50, 90))


def kept(prompt: list[int], answer: list[int]) -> list[int]:
    return [*prompt[-CONTEXT:], *answer]


@given(TEXTS, st.lists(st.integers(0, 2), max_size=40), st.sampled_from([50, 1 << 20]))
@settings(max_examples=200)
def test_a_match_is_the_longest_that_an_answer_went_on_from_unless_it_was_overwritten(
    texts: list[tuple[list[int], list[int]]], text: list[int], room: int
) -> None:
    answer_cache, went_on = AnswerCache(room), set[tuple[int, ...]]()
    for prompt, answer in texts:
        answer_cache.add(prompt, answer)
        held = kept(prompt, answer)
        went_on |= {
            tuple(held[at - n : at + 1])
            for n in ANSWER_CACHE_LENGTHS
            for at in range(n, len(held))
        }

    found = answer_cache.match(text)

    ends = [tuple(text[-n:]) for n in ANSWER_CACHE_LENGTHS if n <= len(text)]
    known = [gram for gram in ends if any(each[:-1] == gram for each in went_on)]
    if room > 50:
        assert (found and found.length) == (len(known[0]) if known else None)
    if found:
        assert (*text[-found.length :], found.token) in went_on
        assert len(answer_cache.following(found.at, 1000)) <= room


def test_an_answer_is_expected_again_after_its_prompt_or_one_that_ends_alike() -> None:
    answer_cache = AnswerCache(1000)
    answer_cache.add(PROMPT, ANSWER)

    assert answer_cache.expected(PROMPT, 1000) == ANSWER
    assert answer_cache.expected((99, *PROMPT[1:]), 4) == ANSWER[:4]
    assert answer_cache.expected((*PROMPT, 7), 1000) == ANSWER[1:]
    assert answer_cache.expected(range(7, 14), 1000) == ()


def test_of_prompts_that_end_alike_the_most_similar_has_its_answer_expected() -> None:
    answer_cache, end = AnswerCache(1000), tuple(range(200, 220))
    for n in range(3):
        answer_cache.add((*range(50 * n, 50 * n + 30), *end), range(1000 * n, 1000 * n + 50))

    assert answer_cache.expected((*range(50, 80), *end), 2) == (1000, 1001)
    assert answer_cache.expected((*range(500, 530), *end), 2) == ()


@pytest.mark.parametrize("part", [0, 1, 40])
def test_an_answer_that_was_cut_short_does_not_replace_the_whole_one(part: int) -> None:
    answer_cache = AnswerCache(1000)
    answer_cache.add(PROMPT, ANSWER)

    answer_cache.add(PROMPT, ANSWER[:part])

    assert answer_cache.expected(PROMPT, 1000) == ANSWER


def test_the_latest_answer_is_expected_and_the_oldest_leaves_first() -> None:
    answer_cache = AnswerCache(150)
    answer_cache.add(PROMPT, ANSWER)
    answer_cache.add(PROMPT, ANSWER[::-1])
    assert answer_cache.expected(PROMPT, 1000) == ANSWER[::-1]

    for n in range(3):
        answer_cache.add(range(100 * n, 100 * n + 20), range(1000 * n, 1000 * n + 50))

    assert answer_cache.expected(PROMPT, 1000) == ()
    assert len(answer_cache.expected(range(200, 220), 1000)) == 50


def test_a_token_of_32_conversations_of_16k_tokens_takes_at_most_20_bytes() -> None:
    tracemalloc.start()
    try:
        answer_cache = AnswerCache(32 * 16_384)
        for n in range(40):
            answer_cache.add(PROMPT, range(n, n + 16_000))
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert held <= 32 * 16_384 * 21


def test_what_the_cache_knows_is_proposed_unread_and_never_read_ahead() -> None:
    answer_cache = AnswerCache(1000)
    answer_cache.add(PROMPT, ANSWER)
    lookup = PromptLookup(ANSWER[:20], answer_cache=answer_cache)

    found = lookup.propose(UNDRAFTED)

    assert found is not None
    assert (found.token, found.origin) == (ANSWER[20], "lookup")
    assert lookup.ahead(READING) == []


def test_a_cache_that_is_wrong_is_soon_believed_no_more() -> None:
    answer_cache = AnswerCache(1000)
    answer_cache.add(PROMPT, ANSWER)
    lookup = PromptLookup(ANSWER[:20], answer_cache=answer_cache)
    first = lookup.propose(UNDRAFTED)

    lookup.follow([1], [])
    lookup.follow([1, *ANSWER[20:36]], [])
    then = lookup.propose(UNDRAFTED)

    assert first is not None
    assert then is not None
    assert then.confidence < first.confidence


# A right prediction fills every pass, a wrong one soon takes no rows; edits are followed.


LIMITS = Limits(max_verify=4, max_ahead=16)


@dataclass
class Alone:
    """It generates `answer` where no edge drafts, and a pass judges four draft tokens."""

    answer: Sequence[TokenId]
    predicted: Sequence[TokenId] = ()
    prompt: Sequence[TokenId] = (1,)
    passes: int = 0
    judged: list[tuple[int, bool]] = field(default_factory=list)
    """The positions of draft tokens that were reached, and whether each was right."""

    def __post_init__(self) -> None:
        request = Open(
            "m", "v", tuple(self.prompt), Sampling(), 0, len(self.answer), (),
            ngram_drafts=True, predicted=tuple(self.predicted),
        )  # fmt: skip
        self.session = VerifyingSession(request, LIMITS, vocabulary_size=10**6, u=iter(()))
        while not self.session.finished:
            self._pass()

    @property
    def wrong(self) -> int:
        return sum(not right for _, right in self.judged)

    def _pass(self) -> None:
        self.passes += 1
        drafts = len(self.session.plan(LIMITS.max_verify))
        start, draft = len(self.session.committed), self.session.begin(drafts).draft
        accepted = 0
        for token in draft:
            right = token == self.answer[start + accepted]
            self.judged.append((start + accepted, right))
            if not right:
                break
            accepted += 1
        tokens = tuple(self.answer[start : start + accepted + 1])
        self.session.resolve(Judgement(tokens, accepted))


NEWLINE = 5
FILE = [token for n in range(20) for token in (*range(100 + 9 * n, 107 + 9 * n), NEWLINE)]
"""Twenty lines of eight tokens; no two share a token but the one that ends them."""

AT = 10 * 8
"""Where the line begins that is edited."""

NEW = [*range(1000, 1007), NEWLINE]


def test_a_right_prediction_fills_every_pass() -> None:
    ran = Alone(FILE, FILE)

    assert ran.passes == len(FILE) / 5
    assert ran.session.totals.verifier_accepted == ran.session.totals.judged == 4 * ran.passes


EDITS = {
    "a changed token": [*FILE[: AT + 3], 1000, *FILE[AT + 4 :]],
    "a changed line": [*FILE[:AT], *NEW, *FILE[AT + 8 :]],
    "a deleted line": [*FILE[:AT], *FILE[AT + 8 :]],
    "three deleted lines": [*FILE[:AT], *FILE[AT + 24 :]],
    "an inserted line": [*FILE[:AT], *NEW, *FILE[AT:]],
    "a line written twice": [*FILE[: AT + 8], *FILE[AT:]],
    "words before it": [*NEW, *FILE],
}


@pytest.mark.parametrize("answer", EDITS.values(), ids=EDITS.keys())
def test_after_an_edit_it_is_sure_of_its_place_within_three_tokens(answer: list[int]) -> None:
    prediction = Prediction(FILE)

    same = max(n for n in range(1, len(FILE) + 1) if answer[-n:] == FILE[-n:])
    prediction.follow(answer[: len(answer) - same + SURE])

    assert list(prediction.continuation(4).tokens) == answer[len(answer) - same + SURE :][:4]


@pytest.mark.parametrize("answer", EDITS.values(), ids=EDITS.keys())
def test_an_edit_takes_few_passes_more_than_its_new_tokens(answer: list[int]) -> None:
    ran = Alone(answer, FILE)

    assert ran.passes <= len(answer) / 5 + len(NEW) + 4
    assert ran.session.totals.verifier_accepted > 100


def test_a_wrong_prediction_is_tried_once() -> None:
    ran = Alone(FILE, range(5000, 5400))

    assert next(position for position, right in ran.judged if not right) == 0
    assert ran.wrong <= Alone(FILE).wrong + 1


def test_one_that_resembles_the_answer_but_misleads_is_trusted_no_more() -> None:
    """Every fourth token differs: each time three have agreed, the next is wrong."""
    answer = [7000 + at if at % 4 == 3 else at for at in range(200)]
    prediction = Prediction(range(200))

    prediction.follow(answer)

    assert prediction.continuation(4).precision.right < 0.1


def test_predicted_tokens_are_counted_once() -> None:
    changed = {20, 60, 100}
    answer = [7000 + at if at in changed else token for at, token in enumerate(FILE)]
    prediction = Prediction(FILE)

    prediction.follow([*answer, *answer[:40]])

    assert prediction.rejected_tokens == len(changed)
    assert prediction.accepted_tokens + prediction.rejected_tokens == len(FILE)


def test_nothing_of_a_wrong_prediction_is_accepted() -> None:
    prediction = Prediction([*range(5000, 5100), *FILE[:2]])

    prediction.follow(FILE)

    assert prediction.accepted_tokens == 0


def test_of_several_places_it_takes_the_next_one() -> None:
    """The 50 agrees with one token far ahead, which alone moves it nowhere."""
    prediction = Prediction([1, 2, 3, 9, 1, 2, 3, 8, 1, 2, 3, 7, 50])

    prediction.follow([1, 2, 3, 9, 50, 1, 2, 3])

    assert prediction.continuation(1).tokens == (8,)


@pytest.mark.parametrize("predicted", [[], [1], FILE[:2]])
def test_where_a_prediction_ends_it_has_nothing(predicted: list[int]) -> None:
    prediction = Prediction(predicted)

    prediction.follow(predicted)

    assert not prediction.continuation(4).tokens


def test_drafts_that_were_followed_and_dropped_leave_no_trace() -> None:
    prediction = Prediction(FILE)
    prediction.follow(FILE[:10], [7, 7, 7])

    prediction.follow(FILE[:14])

    assert list(prediction.continuation(3).tokens) == FILE[14:17]


def test_its_rates_are_learned_from_every_token_of_the_text() -> None:
    """A prompt whose line came once as a lure: the answer never repeats it."""
    answer = [token for n in range(60) for token in (11, 12, 13, 1000 + n)]

    ran = Alone(answer, prompt=range(11, 17))

    assert ran.wrong < 60


@given(
    number=st.integers(0, 2**32),
    right=st.sampled_from([0.0, 0.5, 1.0]),
    disorder=st.integers(0, 300),
    fill=st.sampled_from(["always", "auto", "never"]),
    may_fail=st.booleans(),
    looks_up=st.booleans(),
    cut=st.integers(0, 30),
    wrong=st.lists(st.integers(0, 6), max_size=8),
    whole=st.booleans(),
    replaced=st.booleans(),
)
@settings(max_examples=150)
def test_the_text_never_depends_on_the_verifiers_own_drafts(
    number: int,
    disorder: int,
    fill: str,
    cut: int,
    wrong: list[int],
    whole: bool,
    **ends: object,
) -> None:
    request = opening(seed=number, max_tokens=30, fill=fill, stop_tokens=())
    text = plain(model(number), request)
    predicted = (*text[:cut], *wrong, *text[cut if whole else cut + 2 :])
    asked = replace(request, ngram_drafts=True, predicted=predicted)
    joined = joining(asked, number, **ends)  # type: ignore[arg-type]

    joined.run(disorder)

    assert joined.edge.machine.session.committed == joined.session.committed == text
