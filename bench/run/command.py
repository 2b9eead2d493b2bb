"""`python -m bench run` gives every arm the same questions, interleaved.

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

import asyncio
import os
import sys
from collections.abc import AsyncGenerator, Callable, Collection, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, groupby, product, zip_longest
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Final

import httpx
import msgspec
import typer
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress

from bench import long_work, options
from bench.files import save
from bench.host import commit, this_host
from bench.link import Conditions
from bench.prompts import SHIPPED, Conversation, Prompt, read
from bench.results import Answer, Results, Settings, rows
from bench.run.arms import NAMES, Arm, parse
from bench.run.client import AnswerError, Question, Reply, TooLong
from bench.run.live_arms import Costs, LiveArm, LiveArms
from bench.run.services import CONTEXT_TOKENS, ServicesPlan, pins, verifier_arguments
from gateway.hosting.processes import ServiceError
from gateway.ports import NONE
from local_models.errors import ModelError

WATCHED: Final = MappingProxyType({"include_speculation": True})
"""In scenarios an edge also reports the origins of its tokens, as it does for the page."""


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
        questions = [(t, each) for t in plan.temperatures for each in _in_turn(short)]
        for temperature, (turn, prompt) in questions:
            question = Question(prompt.prompt, temperature, plan.seed + repeat, plan.tokens)
            for at, link in enumerate(plan.links):
                arms = [arm for arm in plan.arms if _asked(arm, repeat, at, plan)]
                first = (turn + at + repeat) % max(len(arms), 1)
                for arm in (*arms[first:], *arms[:first]):
                    settings = _settings(arm, prompt, plan.prompts)
                    yield Turn(arm, prompt, link, repeat, replace(question, settings=settings))


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
                        stream_options=WATCHED if arm.edge else NONE,
                    )  # fmt: skip
                    yield Turn(arm, prompt, link, repeat, question)


def _few_conversations(plan: Plan) -> Iterator[list[Prompt]]:
    for _, family in groupby((p for p in plan.prompts if p.scenario), key=lambda p: p.root):
        scenarios = [list(turns) for _, turns in groupby(family, key=lambda p: p.scenario)]
        for first in range(0, len(scenarios), plan.questions_per_engine):
            yield list(chain(*scenarios[first : first + plan.questions_per_engine]))


def _parts(plan: Plan) -> Iterator[list[Turn]]:
    """Yield the turns of a few questions at a time."""
    turn_groups = groupby(
        turns(plan), key=lambda t: (t.repeat, t.question.temperature, t.prompt.id)
    )
    questions = [list(some) for _, some in turn_groups]
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


def edge_environment(context_tokens: int) -> dict[str, str]:
    """Return the settings of every edge: each serves one answer at a time, and many share the
    memory."""
    context = str(context_tokens)
    return {"PICOSPEC_EDGE__SLOTS": "1", "PICOSPEC_EDGE__CONTEXT_TOKENS": context}


def run(
    context: typer.Context,
    out: options.Out,
    arms: Annotated[
        str, typer.Option(help=f"Of {', '.join(NAMES)}.")
    ] = "cloud,picospec,sync:4,paper:4",
    rtt: options.Rtt = "10",
    rate: Annotated[str, typer.Option(help="Mbit/s each way, e.g. 100,0.064.")] = "",
    families: options.Families = "",
    prompts: options.Prompts = SHIPPED,
    per_family: options.PerFamily = None,
    tokens: options.Tokens = 64,
    repeats: Annotated[int, typer.Option()] = 1,
    questions_per_engine: Annotated[
        int, typer.Option(min=1, help="Before another engine's turn, if arms have several.")
    ] = 3,
    temperatures: options.Temperatures = "0",
    seed: Annotated[int, typer.Option(help="Of the first repeat.")] = 7,
    target: options.Engine = "llama",
    target_model: options.TargetModel = options.PAIR,
    draft_model: options.DraftModel = options.PAIR,
    cloud_draft_model: Annotated[str, typer.Option(help="Of cloud-draft: safetensors.")] = "",
    verifier_python: options.VerifierPython = sys.executable,
    pin: Annotated[str, typer.Option(help='"VERIFIER:EDGE", "none"; halves.')] = "",
) -> None:
    """Measure. Options it does not know go to the verifier, as --vllm.dtype float32; those of
    vLLM also to its own server, where an arm has one."""
    console = Console()
    with options.checked():
        links = product(options.numbers(rate) if rate else [None], options.numbers(rtt))
        plan = Plan(
            parse(arms),
            read(prompts, options.names(families), per_family),
            [Conditions(rtt_ms, rate_mbit=rate_mbit) for rate_mbit, rtt_ms in links],
            options.numbers(temperatures), tokens, repeats, seed,
            questions_per_engine,
        )  # fmt: skip
        for arm in plan.arms:
            if arm.rival:
                arm.rival.check(target, verifier_python, cloud_draft_model, plan.temperatures)
        cores = pins(pin)
    long = any(prompt.scenario for prompt in plan.prompts)
    room = long_work.CONTEXT_TOKENS if long else CONTEXT_TOKENS
    services = ServicesPlan(
        target_model, draft_model, {}, target,
        verifier_arguments(target, 1, context.args, room), verifier_python,
        cores.verifier, cores.edge, edge_environment(room), cloud_draft_model=cloud_draft_model,
    )  # fmt: skip
    if cores.edge:
        os.sched_setaffinity(0, cores.edge)  # links and client are on the user's side
    try:
        asyncio.run(Run(plan, services, out).go(console))
    except* (ServiceError, ModelError, AnswerError, httpx.HTTPError) as errors:
        options.fail(console, errors)


@dataclass(frozen=True, slots=True)
class Run:
    plan: Plan
    services: ServicesPlan
    out: Path

    async def go(self, console: Console) -> Results:
        """Ask everything. The file is complete after every answer. Raises ServiceError,
        ModelError, AnswerError or httpx.TransportError."""
        columns = (*Progress.get_default_columns(), MofNCompleteColumn())
        results, planned = self._nothing_yet(), stints(self.plan)
        with Progress(*columns, console=console) as progress:
            task = progress.add_task("", total=sum(map(len, planned)))
            show = partial(progress.update, task)
            for stint in planned:
                async with aclosing(self._stint(stint, show)) as found:
                    async for answer in found:
                        progress.advance(task)
                        if isinstance(answer, Answer):
                            results = _with(results, answer)
                            save(results, self.out)
                        elif answer:
                            console.print(answer, markup=False, soft_wrap=True)
        return results

    async def _stint(
        self, turns: Sequence[Turn], show: Callable[..., None]
    ) -> AsyncGenerator[Answer | str]:
        """Start one engine with the other services of its arms, and ask them. A scenario ends
        with the context: this then yields a line on it, and "" for each further turn."""
        link, conversation, full = None, Conversation(), ""
        show(description=f"starting {turns[0].arm.engine or 'the services'}")
        own = {turn.arm.name: turn.arm for turn in turns}
        async with LiveArms(self.services, list(own.values())) as arms:
            for turn in turns:
                asked = f"{turn.prompt.id} {turn.arm.name} at {turn.link.rtt_ms:g} ms"
                show(description=asked)
                if turn.link != link:
                    await arms.become(link := turn.link)
                if full and turn.prompt.scenario == full:
                    yield ""
                    continue
                try:
                    yield await _answered(turn, arms.by_name[turn.arm.name], conversation)
                except TooLong as error:
                    if not (full := turn.prompt.scenario):
                        raise
                    yield f"{turn.arm.name}: {full} ends before {turn.prompt.id}: {error}"

    def _nothing_yet(self) -> Results:
        plan, services = self.plan, self.services
        settings: Settings = {
            "arms": [arm.name for arm in plan.arms], "tokens": plan.tokens,
            "repeats": plan.repeats, "seed": plan.seed,
            "verifier_cores": _listed(services.verifier_cores),
            "edge_cores": _listed(services.edge_cores),
            "driver_cores": _listed(os.sched_getaffinity(0)),
        }  # fmt: skip
        return Results(this_host(), commit(), services.models, settings, [], [])


async def _answered(turn: Turn, arm: LiveArm, conversation: Conversation) -> Answer:
    """Ask one question, after this arm's earlier questions and answers."""
    question = replace(turn.question, before=conversation.before(turn.prompt))
    reply, costs = await arm.ask(question, cold=bool(turn.prompt.scenario))
    conversation.answered(turn.prompt, reply.text)
    return answer(turn, reply, costs)


def _with(results: Results, answer: Answer) -> Results:
    answers = [*results.answers, answer]
    return msgspec.structs.replace(results, rows=rows(answers), answers=answers)


def _listed(cores: Collection[int]) -> str:
    return ",".join(map(str, sorted(cores))) or "any"
