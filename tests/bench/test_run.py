"""The whole bench on SmolLM2: it runs, keeps all, and every coupled arm generates the same."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import httpx
import pytest
from rich.console import Console
from typer.testing import CliRunner

from bench.__main__ import app
from bench.files import load
from bench.link import Conditions
from bench.prompts import Prompt, read
from bench.results import Answer, Results
from bench.run.arms import parse
from bench.run.client import AnswerError, Client, Question, TooLong
from bench.run.command import Plan, Run, turns
from bench.run.live_arms import LiveArm
from bench.run.rounds import become
from bench.run.services import ServicesPlan
from bench.run.versus import Key, deal, report
from edge_agent import engine
from speculation.messages import Commit, Finish
from tests.bench.answers import answer
from tests.edge_agent.fakes import JOB, FakeVerifiers, deltas, quiet, scripted
from tests.edge_agent.fakes import engine as edge

ARMS = "cloud,picospec,paper:2,colocated:2"
"""`colocated` has the rounds of `sync`."""
SMALL = {"PICOSPEC_EDGE__SLOTS": "1", "PICOSPEC_EDGE__CONTEXT_TOKENS": "512"}


@pytest.mark.models
async def test_every_arm_answers_every_question_with_clouds_words(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    prompts = [Prompt("a", "chat", "Name three colours.")]
    links = [Conditions(2.0), Conditions(5.0)]
    services = ServicesPlan(
        "smollm2",
        "smollm2",
        {},
        verifier_arguments=("--llama.slots", "2", "--llama.context-tokens", "512"),
        environment=SMALL,
    )

    await Run(Plan(parse(ARMS), prompts, links, (0.0,), tokens=4), services, out).go(
        Console(quiet=True)
    )

    found = load(out, Results)
    assert {(row.arm, row.rtt_ms) for row in found.rows} == {
        (arm.name, rtt_ms) for arm in parse(ARMS) for rtt_ms in (2.0, 5.0)
    }
    assert all(row.identical_to_cloud for row in found.rows)
    by_arm = {row.arm: row for row in found.rows if row.rtt_ms == 5.0}
    assert by_arm["cloud"].bytes_up == 0
    # A busy edge may draft nothing of four tokens in time; what comes down is always counted.
    assert all(by_arm[arm.name].bytes_down > 0 for arm in parse(ARMS) if arm.edge)
    assert all(row.target_passes > 0 for row in found.rows)

    reported = CliRunner().invoke(app, ["report", "--no-plots", str(out)])
    assert reported.exit_code == 0
    assert "paper:2" in out.with_suffix(".md").read_text()


# Every arm gets the same questions, none of them always first.

PROMPTS = [Prompt(f"p{i}", "code", f"Say {i}.") for i in range(3)]
LINKS = [Conditions(10), Conditions(50), Conditions(100)]


def plan(arms: str, repeats: int = 2) -> Plan:
    return Plan(parse(arms), PROMPTS, LINKS, (0.0, 1.0), tokens=8, repeats=repeats)


def test_far_arms_get_every_question_once_over_every_link_with_the_repeats_seed() -> None:
    asked = list(turns(plan("cloud,picospec,sync:4")))

    assert {(turn.repeat, turn.question.seed) for turn in asked} == {(0, 7), (1, 8)}

    for name in ("picospec", "sync:4"):
        mine = [
            (turn.repeat, turn.link, turn.prompt.id, turn.question.temperature)
            for turn in asked
            if turn.arm.name == name
        ]
        assert len(mine) == len(set(mine)) == 2 * 3 * 3 * 2


def test_a_run_cut_short_has_prompts_of_every_family() -> None:
    prompts = [Prompt(f"{family}{i}", family, "Hi.") for family in "abc" for i in range(4)]
    short = replace(plan("cloud,picospec,sync:4,paper:4", repeats=1), prompts=prompts)

    asked = [prompt for prompt, _ in groupby(turn.prompt.id for turn in turns(short))][:12]

    assert asked == ["a0", "b0", "c0", "a1", "b1", "c1", "a2", "b2", "c2", "a3", "b3", "c3"]


def test_each_arm_is_first_about_as_often() -> None:
    first: Counter[str] = Counter()
    last = None
    for turn in turns(plan("cloud,picospec,sync:4", repeats=3)):
        asked = (turn.repeat, turn.link, turn.question.temperature, turn.prompt.id)
        if turn.link.rtt_ms == 10 and asked != last:
            first[turn.arm.name] += 1
        last = asked

    assert set(first.values()) == {6}


def test_cloud_is_measured_in_every_repeat_and_checked_at_the_last_link() -> None:
    links = {
        (turn.repeat, turn.link.rtt_ms)
        for turn in turns(plan("cloud,picospec"))
        if turn.arm.name == "cloud"
    }

    assert links == {(0, 10), (0, 100), (1, 10)}


@pytest.mark.parametrize(
    ("arms", "named"),
    [
        ("picospec", "cloud"),
        ("cloud,cloud", "arm"),
        ("cloud,other", "other"),
        ("cloud,sync:0", "sync:0"),
        ("cloud,sync:17", "sync:17"),
        ("cloud,paper:x", "paper:x"),
        ("cloud,cloud-ngram:0", "cloud-ngram:0"),
        ("cloud,cloud-draft:x", "cloud-draft:x"),
        ("cloud,cloud-vllm:3", "cloud-vllm:3"),
    ],
)
def test_arms_that_cannot_be_are_refused(arms: str, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        parse(arms)


async def test_an_edge_becomes_an_arm_of_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "StreamPolicy", engine.StreamPolicy)  # put back at the end
    verifiers = FakeVerifiers(scripted(quiet, Commit(0, 0, (3,)), quiet, Finish("stop")))

    become("sync:1")
    await deltas(edge(verifiers).generate(JOB))

    assert verifiers.link.drafted == [3, 4]


def test_an_arm_sends_its_prompts_prediction_or_anothers_or_none() -> None:
    prompts = [Prompt(f"p{i}", "edit", f"Say {i}.", prediction=f"said {i}") for i in range(3)]
    arms = "cloud,picospec-predicted,picospec-mispredicted"
    asked = turns(replace(plan(arms, repeats=1), prompts=prompts, links=LINKS[:1]))

    sent = {
        (turn.arm.name, turn.prompt.id): turn.question.settings.get("prediction")
        for turn in asked
    }

    for i in range(3):
        own, other = f"said {i}", f"said {(i + 1) % 3}"
        assert sent["cloud", f"p{i}"] is None
        assert sent["picospec-predicted", f"p{i}"] == {"type": "content", "content": own}
        assert sent["picospec-mispredicted", f"p{i}"] == {"type": "content", "content": other}


# Before an arm is measured, both of its ends have read the prompt.

QUESTION = Question("why?", 0.0, 7, 64)


class ChunkedArm:
    """An edge whose draft model generates its first token at the n-th request."""

    def __init__(self, askings: int) -> None:
        self.asked: list[int] = []
        self._askings = askings

    async def ask(self, question: Question) -> None:
        self.asked.append(question.tokens)

    async def get(self, path: str) -> SimpleNamespace:
        stale = float(len(self.asked) >= self._askings)
        text = f"picospec:edge_stale_steps_total {stale}\n"
        return SimpleNamespace(text=text, status_code=200)


@pytest.mark.parametrize(("has_edge", "asked"), [(True, [2, 2, 2, 64]), (False, [1, 64])])
async def test_an_edge_is_asked_until_its_draft_model_has_taken_part(
    has_edge: bool, asked: list[int]
) -> None:
    arm = ChunkedArm(askings=3)
    edge = cast(httpx.AsyncClient, arm) if has_edge else None

    await LiveArm(cast(Client, arm), edge, None).ask(QUESTION)

    assert arm.asked == asked


async def test_a_cold_question_is_asked_once_and_what_the_target_read_is_counted() -> None:
    scraped = iter([(5, 0, 0), (5, 1470, 1024)])

    async def metrics(path: str) -> SimpleNamespace:
        llamas, prompts, hits = next(scraped)
        text = f"""# HELP vllm:prompt_tokens_total Prompts.
picospec:prefilled_tokens_total {llamas}0.0
vllm:prompt_tokens_total{{engine="0",model_name="a b"}} {prompts}
vllm:prompt_tokens_cached_total{{engine="0"}} {hits / 2}
vllm:prompt_tokens_cached_total{{engine="1"}} {hits / 2}
"""
        return SimpleNamespace(text=text, status_code=200)

    arm = ChunkedArm(askings=3)
    verifier = cast(httpx.AsyncClient, SimpleNamespace(get=metrics))
    live = LiveArm(cast(Client, arm), cast(httpx.AsyncClient, arm), None, verifier)

    _, costs = await live.ask(QUESTION, cold=True)

    assert arm.asked == [64]
    assert costs["read_tokens"] == 1470 - 1024


# The client notes when each piece of text comes, and what speculation did for it.

CLIENT_QUESTION = Question("Say hello.", 0.0, seed=7, tokens=5)


def piece(text: str | None, finish: str | None = None) -> dict[str, object]:
    return {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": finish}]}


USAGE = {
    "choices": [],
    "usage": {"prompt_tokens": 3, "completion_tokens": 4},
    "metrics": {
        "speculative_decoding": {
            "num_draft_tokens": 6, "num_accepted_draft_tokens": 2, "num_target_passes": 2
        }
    },
}  # fmt: skip


def client(*events: object, status: int = 200, body: str = "") -> Client:
    """A client of a service that sends these events; each reading of its clock is a second."""

    async def stream() -> AsyncIterator[bytes]:
        for event in events:
            yield f"data: {json.dumps(event)}\n\n".encode()
        yield b"data: [DONE]\n\n"

    def serve(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/v1/models":
            return httpx.Response(200, json={"data": [{"id": "m"}]})
        asked = json.loads(request.content)
        assert (asked["model"], asked["seed"], asked["max_tokens"]) == ("m", 7, 5)
        assert asked["stream_options"]["include_usage"]
        return httpx.Response(status, content=body or stream())

    seconds: Iterator[float] = iter(range(100))
    transport = httpx.MockTransport(serve)
    http = httpx.AsyncClient(base_url="http://service", transport=transport)
    return Client(http, lambda: next(seconds))


async def test_pieces_are_timed_from_the_moment_of_asking() -> None:
    reply = await client(piece(""), piece("Hel"), piece("lo"), piece(None, "stop"), USAGE).ask(
        CLIENT_QUESTION
    )

    assert (reply.text, reply.tokens) == ("Hello", 4)
    assert reply.arrivals_s == (2.0, 3.0)
    assert reply.gaps_s == [1.0]
    assert reply.first_share == pytest.approx(3 / 5)
    assert reply.seconds == 4.0
    assert (reply.drafted, reply.accepted, reply.target_passes) == (6, 2, 2)


async def test_chunks_that_tell_of_speculation_are_no_text() -> None:
    looked_up = {"choices": [], "speculation": {"event": "chain", "tokens": 3, "drafted": 0}}
    chain = {"choices": [], "speculation": {"event": "chain", "text": "lo", "drafted": 2}}
    said = {**piece("Hello"), "speculation": {"tokens": {"draft": 1}}}
    last = {**USAGE, "speculation": {"event": "totals", "tokens": {"draft": 1, "target": 3}}}

    reply = await client(looked_up, chain, said, piece(None, "stop"), last).ask(CLIENT_QUESTION)

    assert (reply.text, reply.tokens) == ("Hello", 4)
    assert reply.arrivals_s == (3.0,)
    assert (reply.first_draft_s, reply.origins) == (2.0, {"draft": 1, "target": 3})
    assert (reply.drafted, reply.accepted, reply.target_passes) == (6, 2, 2)


@pytest.mark.parametrize(
    ("asked", "raised", "said"),
    [
        (client(piece("Hel"), {"error": {"code": "away"}}), AnswerError, "away"),
        (client(piece("Hel")), AnswerError, "before it was complete"),
        (client(status=400, body="context_length_exceeded: 8192"), TooLong, "8192"),
        (client(status=503), AnswerError, "503"),
    ],
    ids=["an error in the stream", "cut short", "too long for the context", "refused"],
)
async def test_an_answer_that_fails_says_why(
    asked: Client, raised: type[Exception], said: str
) -> None:
    with pytest.raises(raised, match=said):
        await asked.ask(CLIENT_QUESTION)


# Two checkouts are compared by the answers that both gave to the same questions.


def checkout(seconds: float, text: str = "same") -> dict[Key, Answer]:
    """What a checkout measured that generates `text` in `seconds`."""
    return {
        ("picospec", prompt, 10.0, 0.0, 0): answer(
            "picospec", seconds, prompt=prompt, text=text
        )
        for prompt in "ab"
    }


@pytest.mark.parametrize(
    ("seconds", "text", "rate", "differ"),
    [
        (2.0, "same", "1.000 [1.000, 1.000], width 0.000: yes", 0),
        (4.0, "other", "0.500 [0.500, 0.500], width 0.000: NO", 2),
    ],
)
def test_a_checkout_that_is_slower_or_generates_other_texts_is_reported(
    seconds: float, text: str, rate: str, differ: int
) -> None:
    tokens, first, texts = report(checkout(2.0), checkout(seconds, text))

    assert tokens == f"picospec: tokens/s, new/old: {rate}"
    assert first.endswith("yes")
    assert texts == f"{differ} of 2 texts differ"


def test_every_slice_has_some_of_each_family_and_whole_conversations(tmp_path: Path) -> None:
    prompts = read(families=["code", "agent", "held-out"])

    dealt = [read(path) for path in deal(prompts, 2, tmp_path)]

    assert sorted(p.id for some in dealt for p in some) == sorted(p.id for p in prompts)
    for some in dealt:
        assert {p.root for p in some} >= {"code", "agent"}
        assert all(p.turn == n % 8 for n, p in enumerate(p for p in some if p.scenario))
