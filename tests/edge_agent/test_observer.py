"""What a watched answer is told of: whose each token is, and what became of the chain."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import replace
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agent.link.known_verifiers import KnownVerifier
from edge_agent.observer import AnswerObserver
from gateway.watching import ChainEvent, LinkUse, Origin, PassEvent
from speculation.draft_machine import DraftMachine, DraftStep, Outcome
from speculation.draft_policy import StreamPolicy
from speculation.draft_token import DraftToken, mark_ahead
from speculation.judges import JUDGES
from speculation.messages import Commit, Down, Open, Opened, Sampling
from speculation.model_facts import Limits, TokenId
from tests.speculation.joined import Joined
from tests.speculation.small_models import model, opening, plain


class Where:
    """Of the link that the answer uses."""

    verifier = KnownVerifier("1")
    reopened = 0


class Recorder(AnswerObserver):
    """Notes the origins of what is committed, and of all that was ever in the chain."""

    def __init__(self, machine: DraftMachine) -> None:
        super().__init__(machine, Where(), lambda: 0.0)
        self.reported: list[Origin] = []
        self.events: list[object] = []
        self.proposed: defaultdict[tuple[int, TokenId], set[Origin]] = defaultdict(set)

    def decided(self, outcome: Outcome, now: float) -> None:
        super().decided(outcome, now)
        self._note()

    def before(self, message: Down) -> None:
        self._note()
        super().before(message)

    def after(self, outcome: Outcome) -> None:
        super().after(outcome)
        if outcome.commit is not None:
            self.reported += self.origins(outcome.commit)
        self.events += self.take_all(0.0)

    def _note(self) -> None:
        session = self._machine.session
        for position, each in enumerate(session.chain, len(session.committed)):
            self.proposed[position, each.token].add(each.origin)


@given(
    number=st.integers(0, 2**32),
    right=st.sampled_from([0.0, 0.3, 0.7, 0.95, 1.0]),
    disorder=st.integers(0, 300),
    judge=st.sampled_from(["coupled", "separate"]),
    fill=st.sampled_from(["always", "auto", "never"]),
    looks_up=st.booleans(),
    replaced=st.booleans(),
    predicts=st.booleans(),
)
@settings(max_examples=300)
def test_each_committed_token_has_one_origin_and_accepted_ones_that_of_their_draft_token(
    number: int,
    right: float,
    disorder: int,
    judge: str,
    fill: str,
    looks_up: bool,
    replaced: bool,
    predicts: bool,
) -> None:
    request = opening(judge=judge, max_tokens=30, fill=fill, seed=number)
    coupled = judge == "coupled"
    predicted = tuple(plain(model(number), request)) if predicts and coupled else ()
    request = replace(request, ngram_drafts=bool(predicted), predicted=predicted)
    joined = Joined(
        request, model(number), model(number + 3), Random(number), right,
        looks_up=looks_up and coupled, replaced=replaced,
    )  # fmt: skip
    recorder = Recorder(joined.edge.machine)

    joined.run(disorder)

    machine, finish = joined.edge.machine, joined.edge.finish
    assert finish is not None
    text = machine.session.committed
    assert len(recorder.reported) == len(text)
    accepted = [(i, origin) for i, origin in enumerate(recorder.reported) if origin != "target"]
    assert len(accepted) == finish.totals.accepted
    drafted = [(i, origin) for i, origin in accepted if origin != "verifier"]
    assert len(accepted) - len(drafted) == finish.totals.verifier_accepted
    assert all(origin in recorder.proposed[i, text[i]] for i, origin in drafted)
    passes = [event for event in recorder.events if isinstance(event, PassEvent)]
    assert sum(event.accepted for event in passes) == finish.totals.accepted
    assert all(event.rows > event.accepted for event in passes)
    wrong = [e for e in recorder.events if isinstance(e, ChainEvent) and e.broken]
    assert all(e.ids[0] != text[e.position] for e in wrong if e.position < len(text))


def test_what_the_harness_drafts_has_every_origin() -> None:
    seen = Counter[Origin]()
    for number in range(12):
        request = opening(max_tokens=40, seed=number, stop_tokens=(), ngram_drafts=True)
        models = model(number), model(number + 3)
        joined = Joined(request, *models, Random(number), 0.9, looks_up=True)
        recorder = Recorder(joined.edge.machine)
        joined.run(50)
        seen.update(recorder.reported)

    assert {"draft", "ahead", "verifier", "target"} <= seen.keys()


def test_of_a_step_that_read_ahead_the_tokens_that_agreed_are_marked() -> None:
    tokens = [DraftToken(token, 1.0) for token in (5, 6, 7)]

    marked = mark_ahead(tokens, [5, 6, 9, 7])

    assert [each.origin for each in marked] == ["ahead", "ahead", "draft"]
    assert [each.token for each in marked] == [5, 6, 7]


# --- one machine by hand

LIMITS = Limits(max_verify=4, max_ahead=16)


class Edge:
    """A watched machine with a chain of 3, 4, 5, ... behind what is committed."""

    def __init__(self) -> None:
        self.now = 10.0
        request = Open("m", "v", (1, 2, 3), Sampling(), 0, 40, (777,))
        self.machine = DraftMachine(
            request, StreamPolicy(), LIMITS, JUDGES["coupled"].edge(request, iter(())),
            rtt_s=lambda: 0.04, drafts=True,
        )  # fmt: skip
        self.observer = AnswerObserver(self.machine, Where(), lambda: self.now)
        self.machine.opening()
        self.receive(Opened("s", LIMITS))

    def draft(self, count: int) -> None:
        for _ in range(count):
            step = self.machine.next(self.now, busy=False).step
            assert isinstance(step, DraftStep)
            token = DraftToken(100 + len(step.context), 1.0)
            self.machine.drafted(step, [token], self.now)
        self.machine.next(self.now, busy=False)

    def receive(self, message: Down) -> list[object]:
        self.machine.received(message)
        return list(self.observer.take())

    def commit(self, *tokens: int, accepted: int = 0, pass_s: float = 0.02) -> list[object]:
        session = self.machine.session
        start = len(session.committed)
        return self.receive(
            Commit(session.epoch, start, tokens, accepted, queue_s=0.001, pass_s=pass_s)
        )


def test_a_chain_that_breaks_is_told_at_once_from_its_wrong_token_on() -> None:
    edge = Edge()
    edge.draft(4)
    edge.now += 1.0

    events = edge.commit(100, 9, accepted=1)

    assert events == [
        PassEvent(0, 5, 1, 2, "recovered", 20.0, 1.0, None, None),
        ChainEvent(0, 1, 3, broken=True, ids=(101, 102, 103), drafted=3),
    ]
    (chain, _) = edge.observer.take_all(edge.now)
    assert chain == ChainEvent(1, 2, 0, broken=False)


def test_only_drafts_that_were_there_when_the_pass_began_count_as_its_rows() -> None:
    edge = Edge()
    edge.draft(2)
    edge.now += 0.03
    edge.draft(2)
    edge.now += 0.045  # a round trip and a pass take 60 ms

    (event,) = edge.commit(100, 101, 102, accepted=2)

    assert isinstance(event, PassEvent)
    assert (event.rows, event.beyond) == (3, "bonus")


def test_what_a_pass_leaves_of_a_draft_counts_as_the_rows_of_the_next() -> None:
    edge = Edge()
    edge.draft(4)
    edge.now += 1.0
    edge.commit(100, 101, accepted=2)
    edge.now += 1.0

    event, _ = edge.commit(102, 9, accepted=1)

    assert isinstance(event, PassEvent)
    assert (event.rows, event.accepted, event.beyond) == (3, 1, "recovered")


def test_a_pass_without_drafts_is_a_fill_in_pass_and_the_time_of_a_row() -> None:
    edge = Edge()
    edge.commit(5, pass_s=0.9)  # it reads the prompt
    edge.now += 0.5

    (event,) = edge.commit(6, pass_s=0.031)

    assert event == PassEvent(1, 1, 0, 1, "fill", 31.0, 1.0, 500.0, 31.0)


def test_the_first_pass_of_a_session_that_goes_on_elsewhere_reads_the_prompt_again() -> None:
    edge = Edge()
    edge.commit(5, pass_s=0.9)
    edge.commit(6, pass_s=0.030)
    edge.machine.lost()
    edge.machine.opening()

    edge.commit(7, pass_s=0.001)
    (event,) = edge.commit(8, pass_s=0.030)

    assert isinstance(event, PassEvent)
    assert event.cloud_row_ms == 30.0


def test_a_look_tells_of_a_chain_and_of_a_link_only_when_they_have_changed() -> None:
    edge = Edge()
    edge.draft(3)

    first = edge.observer.take_all(edge.now)
    again = edge.observer.take_all(edge.now + 0.05)
    edge.draft(1)
    later = edge.observer.take_all(edge.now + 0.6)

    (chain, link) = first
    assert chain == ChainEvent(0, 0, 3, broken=False, ids=(100, 101, 102), drafted=3)
    assert isinstance(link, LinkUse)
    assert (link.verifier, link.reopened, link.rtt_ms) == ("1", 0, 40.0)
    assert link.bytes_up > 0
    assert again == ()
    assert [type(event) for event in later] == [ChainEvent, LinkUse]
    (heartbeat,) = edge.observer.take_all(edge.now + 20)  # so that it is not silent
    assert isinstance(heartbeat, LinkUse)


def test_the_text_of_a_chain_is_bounded() -> None:
    edge = Edge()
    edge.machine.session.chain += [DraftToken(1, 1.0)] * 300

    (chain, _) = edge.observer.take_all(edge.now)

    assert isinstance(chain, ChainEvent)
    assert (chain.tokens, len(chain.ids)) == (300, 256)
