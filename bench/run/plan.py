"""Every arm gets the same questions, interleaved.

The order is repeat by repeat, prompt by prompt (families alternate), link by link; at each link
all arms follow one another, and each time another arm begins. So compared answers are minutes
apart. Arms of several engines (bench.run.rivals) take turns: each engine answers a few
questions before the next one is started, in the order A B, B A, A B, so that a drift in the
host's speed affects all alike. `cloud` generates one token a pass at any distance: it is asked
over the first link in every repeat, and over the last link in the first repeat, as a check.

Scenarios come after all other questions, and are asked without a warm-up, as users ask them.
Each arm has its own services for them, restarted for each few conversations, so that no arm
benefits from another one's requests. An arm that remembers requests (cloud-suffix, an edge) may
do so, because no question comes twice.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, groupby, product, zip_longest
from typing import Any

from picospec.bench.data.prompts import Prompt
from picospec.bench.data.results import Answer
from picospec.bench.link import Conditions
from picospec.bench.run.client import Question, Reply
from picospec.bench.run.live_arms import Arm, Costs


@dataclass(frozen=True, slots=True)
class Plan:
    arms: Sequence[Arm]
    prompts: Sequence[Prompt]
    links: Sequence[Conditions]
    temperatures: Sequence[float] = (0.0,)
    tokens: int = 64
    repeats: int = 1
    seed: int = 7
    """The first repeat has this seed; each later repeat has the next one."""

    questions_per_engine: int = 3
    """The arms of one engine answer this many questions before the next engine is started."""


@dataclass(frozen=True, slots=True)
class Turn:
    """A Turn is one question to one arm."""

    arm: Arm
    prompt: Prompt
    link: Conditions
    repeat: int
    question: Question

    @property
    def services(self) -> tuple[object, ...]:
        """Identifies the services that answer; consecutive turns with the same ones are asked
        without a restart."""
        if not self.prompt.scenario:
            return (self.arm.engine,)
        return (self.arm.name, self.repeat, self.question.temperature, self.link)


def turns(plan: Plan) -> Iterator[Turn]:
    """Yield the questions in their order."""
    for repeat in range(plan.repeats):
        short = [prompt for prompt in plan.prompts if not prompt.scenario]
        asked = [(t, each) for t in plan.temperatures for each in _in_turn(short)]
        for temperature, (turn, prompt) in asked:
            question = Question(prompt.prompt, temperature, plan.seed + repeat, plan.tokens)
            for at, link in enumerate(plan.links):
                arms = [arm for arm in plan.arms if _asked(arm, repeat, at, plan)]
                first = (turn + at + repeat) % max(len(arms), 1)
                for arm in (*arms[first:], *arms[:first]):
                    settings = _settings(arm, prompt, plan.prompts)
                    asks = replace(
                        question, settings=settings, stream_options=arm.stream_options
                    )
                    yield Turn(arm, prompt, link, repeat, asks)


def stints(plan: Plan) -> list[list[Turn]]:
    """Return all turns in their order, grouped by engine."""
    engines = list(dict.fromkeys(arm.engine for arm in plan.arms))
    ordered: list[Turn] = []
    for number, part in enumerate(_parts(plan)):
        for engine in engines if number % 2 == 0 else reversed(engines):
            ordered += [turn for turn in part if turn.arm.engine == engine]
    ordered += _long_work(plan)
    return [list(some) for _, some in groupby(ordered, key=lambda turn: turn.services)]


def _long_work(plan: Plan) -> Iterator[Turn]:
    """Yield the turns of the scenarios: a few conversations of a family by one arm, then the
    same ones by the next arm."""
    settings = product(range(plan.repeats), plan.temperatures, enumerate(plan.links))
    for repeat, temperature, (at, link) in settings:
        arms = [arm.at_long_work() for arm in plan.arms if _asked(arm, repeat, at, plan)]
        for prompts in _few_conversations(plan):
            for arm in arms:  # so no service gets a question twice in a row
                for prompt in prompts:
                    question = Question(
                        prompt.prompt, temperature, plan.seed + repeat, plan.tokens,
                        stream_options=arm.stream_options,
                    )  # fmt: skip
                    yield Turn(arm, prompt, link, repeat, question)


def _few_conversations(plan: Plan) -> Iterator[list[Prompt]]:
    for _, family in groupby((p for p in plan.prompts if p.scenario), key=lambda p: p.root):
        scenarios = [list(turns) for _, turns in groupby(family, key=lambda p: p.scenario)]
        for first in range(0, len(scenarios), plan.questions_per_engine):
            yield list(chain(*scenarios[first : first + plan.questions_per_engine]))


def _parts(plan: Plan) -> Iterator[list[Turn]]:
    """Yield the turns of a few questions at a time."""
    asked = groupby(turns(plan), key=lambda t: (t.repeat, t.question.temperature, t.prompt.id))
    questions = [list(some) for _, some in asked]
    for first in range(0, len(questions), plan.questions_per_engine):
        yield list(chain(*questions[first : first + plan.questions_per_engine]))


def _settings(arm: Arm, prompt: Prompt, prompts: Sequence[Prompt]) -> dict[str, object]:
    """Return an arm's request fields beside the question: a prediction, if it has one."""
    family = [each for each in prompts if each.family == prompt.family]
    other = family[(family.index(prompt) + 1) % len(family)]
    text = {"": "", "own": prompt.prediction, "other": other.prediction}[arm.predicts]
    return {"prediction": {"type": "content", "content": text}} if text else {}


def _in_turn(prompts: Sequence[Prompt]) -> list[tuple[int, Prompt]]:
    """Return prompts with the families alternating, so that an aborted run has some of each.

    The number with a prompt chooses the arm that begins; a family's numbers are all different.
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
    if arm.place == "alone":  # without a link
        return link == 0
    return arm.name != "cloud" or link == 0 or (repeat == 0 and link == len(plan.links) - 1)


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 2)


def answer(turn: Turn, reply: Reply, costs: Costs) -> Answer:
    """Return the part of a reply that is kept."""
    ttft_s = reply.arrivals_s[0] if reply.arrivals_s else reply.seconds
    counted: dict[str, Any] = {
        name: round(value, 3) if name.endswith("_s") else int(value)
        for name, value in costs.items()
    }
    return Answer(
        turn.arm.name, turn.prompt.family, turn.prompt.id, turn.repeat,
        turn.link.rtt_ms, turn.link.rate_mbit, turn.question.temperature,
        reply.text, reply.tokens, round(reply.first_share, 5), round(reply.seconds, 5),
        round(ttft_s * 1000, 2), [round(gap * 1000, 2) for gap in reply.gaps_s],
        reply.drafted, reply.accepted, reply.target_passes,
        prompt_tokens=reply.prompt_tokens, origins=dict(reply.origins),
        first_draft_ms=_ms(reply.first_draft_s), **counted,
    )  # fmt: skip
