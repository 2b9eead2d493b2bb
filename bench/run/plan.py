"""Asks every arm the same questions, interleaved, and keeps what came of it.

Repeat by repeat, prompt by prompt, a family after another, link by link; at each link the arms
come one after another, beginning with another one each time. So what is compared was asked
within minutes: a machine whose speed drifts changes all of it. `cloud` says one token a pass at
any distance: it is asked over the first link in every repeat, and over the last in the first
repeat, as a check.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

from bench.link.path import Conditions
from bench.report.results import Answer
from bench.run.arms import Arm
from bench.run.client import Question, Reply
from bench.run.live_arms import Arena, Costs
from bench.run.prompts import Prompt


@dataclass(frozen=True, slots=True)
class Plan:
    arms: Sequence[Arm]
    prompts: Sequence[Prompt]
    links: Sequence[Conditions]
    temperatures: Sequence[float] = (0.0,)
    tokens: int = 64
    repeats: int = 1
    seed: int = 7
    """Of the first repeat; each later one has the next."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One question to one arm."""

    arm: Arm
    prompt: Prompt
    link: Conditions
    temperature: float
    repeat: int
    question: Question


def turns(plan: Plan) -> Iterator[Turn]:
    """Yield the questions in the order in which they are asked."""
    for repeat in range(plan.repeats):
        asked = [(t, each) for t in plan.temperatures for each in _in_turn(plan.prompts)]
        for temperature, (turn, prompt) in asked:
            question = Question(prompt.prompt, temperature, plan.seed + repeat, plan.tokens)
            for at, link in enumerate(plan.links):
                arms = [arm for arm in plan.arms if _asked(arm, repeat, at, plan)]
                first = (turn + at + repeat) % max(len(arms), 1)
                for arm in (*arms[first:], *arms[:first]):
                    yield Turn(arm, prompt, link, temperature, repeat, question)


def _in_turn(prompts: Sequence[Prompt]) -> list[tuple[int, Prompt]]:
    """Return one prompt of each family after another: a run cut short has some of all.

    With each a number, to tell the arm that begins; a family has no number twice.
    """
    families: dict[str, list[Prompt]] = {}
    for prompt in prompts:
        families.setdefault(prompt.family, []).append(prompt)
    return [
        (row + place, prompt)
        for row, some in enumerate(zip_longest(*families.values()))
        for place, prompt in enumerate(some)
        if prompt
    ]


def _asked(arm: Arm, repeat: int, link: int, plan: Plan) -> bool:
    if arm.place == "alone":  # it has no link
        return link == 0
    return arm.name != "cloud" or link == 0 or (repeat == 0 and link == len(plan.links) - 1)


async def ask(arena: Arena, turn: Turn) -> Answer:
    """Ask one question. Raises bench.run.client.AnswerError, or httpx.TransportError."""
    reply, costs = await arena.seats[turn.arm.name].ask(turn.question)
    return answer(turn, reply, costs)


def answer(turn: Turn, reply: Reply, costs: Costs) -> Answer:
    """Put together what is kept of one reply."""
    ttft_s = reply.arrivals_s[0] if reply.arrivals_s else reply.seconds
    return Answer(
        turn.arm.name,
        turn.prompt.family,
        turn.prompt.id,
        turn.repeat,
        turn.link.rtt_ms,
        turn.link.rate_mbit,
        turn.temperature,
        reply.text,
        reply.tokens,
        round(reply.first_share, 5),
        round(reply.seconds, 5),
        round(ttft_s * 1000, 2),
        [round(gap * 1000, 2) for gap in reply.gaps_s],
        reply.drafted,
        reply.accepted,
        reply.target_passes,
        guessed=int(costs.guessed),
        bytes_up=int(costs.bytes_up),
        bytes_down=int(costs.bytes_down),
        link_bytes_up=int(costs.link_bytes_up),
        link_bytes_down=int(costs.link_bytes_down),
        edge_cpu_s=round(costs.edge_cpu_s, 3),
        stolen_s=round(costs.stolen_s, 3),
    )


def repository() -> Path:
    """Return where this code was checked out."""
    return Path(__file__).resolve().parents[2]
