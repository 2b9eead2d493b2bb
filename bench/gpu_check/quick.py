"""Checks a GPU host within ten minutes: our verifier first, then what it is compared with.

Engines run one after another, and each part is reported when it ends:

    PicoSpec                   its start, its texts, requests without sessions, sessions
    stock vLLM                 the same requests; and its texts, alone and many at once
    without async scheduling   the same requests
    batch-invariant            texts of sessions and of requests without sessions
    two adapters               the same, with both at once
    FULL graphs, unequal rows  the same, and sessions
    on two GPUs                the same, if there are two

A session's text may differ from stock vLLM's where two logits are nearly equal, because passes
of other shapes round differently. Stock vLLM differs from itself likewise when it is loaded:
that is the control group. Sessions may not differ more often than it does. A batch-invariant
engine rounds in one way, so nothing may differ there.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Final, TypeVar

import httpx
import msgspec

from bench.clients import Client, ScriptedDrafter, facts_of, scripted
from bench.gpu_check import adapters
from bench.gpu_check.engines import (
    ENGINE_S,
    FAST,
    FAST_STEP_S,
    PLUGGED,
    Engines,
    answered,
    tokenized,
)
from bench.gpu_check.loads import UNPLUGGED
from bench.gpu_check.parts import Check, Found, NotRun, command, fenced
from bench.identity import TIMEOUT_S
from bench.run.rivals import PLAIN, Rival
from bench.run.services import READY_WITHIN_S, VLLMS_PORT, Services, ServicesPlan, free_port
from bench.simulator.hosts import Curve
from bench.simulator.source import Source, guessed
from bench.statistics import fisher
from bench.tables import markdown
from bench.traces import Text
from gateway.hosting.processes import ServiceError
from speculation.messages import Sampling
from speculation.model_facts import TokenId

PART_S: Final = 120.0
"""Each part but a start must end within this many seconds on a GPU."""

TOKENS: Final = 32
"""Texts are compared up to this many tokens: the longer they are, the more of them have a
near-tie, and the less a defect would stand out."""

GREEDY: Final = "temperature 0"
STEPS: Final = Curve({1: FAST_STEP_S})
"""A draft step of an edge takes this long."""

NEUTRAL: Final[dict[str, float]] = {
    "temperature": 0.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "seed": 0,
    "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0,
}  # fmt: skip
"""Every request says these, because a model may come with other defaults."""

SETTINGS: Final[Mapping[str, Mapping[str, float]]] = {
    GREEDY: NEUTRAL,
    "penalties": NEUTRAL | {"repetition_penalty": 1.1, "presence_penalty": 0.5},
    "temperature 1": NEUTRAL | {"temperature": 1.0},
    "top-p": NEUTRAL | {"temperature": 0.8, "top_p": 0.95},
}
"""Each prompt is answered with each of these."""

ANY_PROMPT: Final = (1, 2, 3, 4)
AT_ONCE: Final = 16
STOCK: Final = Rival(PLAIN)
RIGHT: Final = 0.8
"""This share of the edges' draft tokens is right."""

LEAST_P: Final = 0.05
"""Sessions fail if chance alone would make them differ so often with less probability."""

SWITCHED: Final = "sessions beside a grammar"
TWO_GPUS: Final = "two GPUs"
UNEQUAL: Final = "FULL graphs of unequal rows"
ADAPTERS: Final = "two adapters"
WITHOUT_ASYNC: Final = f"{UNPLUGGED}, no async scheduling"
INVARIANT: Final = "batch-invariant"
CONTROL: Final = f"{UNPLUGGED}, {AT_ONCE} at once"

TELLING: Final = re.compile(
    r"(?i)cuda ?graph|captur|async(hronous)? sched|attention.{0,20} backend|model runner"
    r"|kv cache (size|memory)|memory usage|maximum concurrency|self.?test"
)
"""The report quotes each match of this in an engine's log, with QUOTED characters around it."""

QUOTED: Final = 70
GRAPH: Final = re.compile(r"\|\s*(FULL|PIECEWISE|NONE)\s*\|\s*(\d+)\s*\|")
"""A line of vLLM's table of CUDA graphs (--cudagraph-metrics) has a mode, and its passes."""

CAUSE: Final = re.compile(r"\b\w+(Error|Exception): .*")
"""Errors in the log of an engine that does not start are quoted, too."""

MOST_LINES: Final = 16

Texts = Mapping[str, Sequence[Text]]
"""Texts are the answers to all prompts, by the name of their settings."""

Asked = TypeVar("Asked")


def differing(texts: Texts, expected: Texts) -> tuple[int, int]:
    """Return how many of the texts differ from those expected, and how many there are."""
    return sum(counts(texts, expected)), sum(map(len, expected.values()))


def counts(texts: Texts, expected: Texts) -> list[int]:
    """Return how many of the texts differ from those expected, for each of their settings."""
    pairs = (zip(texts[name], own, strict=True) for name, own in expected.items())
    return [sum(list(a[:TOKENS]) != list(b[:TOKENS]) for a, b in each) for each in pairs]


def compared(expected: Texts, control: Texts, groups: Mapping[str, Texts]) -> Found:
    """Compare groups of texts with those expected, and how often they differ with how often
    those of the control group do."""
    own, lines, least = differing(control, expected), list[Sequence[str]](), 1.0
    for name, texts in {f"control: {CONTROL}": control, **groups}.items():
        hits, size = differing(texts, expected)
        p = fisher((hits, size), own) if name in groups else None
        least = least if p is None else min(least, p)
        each = map(str, counts(texts, expected))
        lines.append((name, f"{hits} of {size}", *each, "" if p is None else f"{p:.3f}"))
    why = f"p below {LEAST_P:g} fails: the group differs more often than the control group."
    head = (f"compared with {UNPLUGGED}, alone", "differ", *expected, "p")
    return bool(groups) and least >= LEAST_P, f"{markdown(head, lines)}\n\n{why}"


def quoted_lines(log: Sequence[str]) -> list[str]:
    """Return the telling parts of a log's lines, each once."""
    matches = [(match, line) for line in log if (match := TELLING.search(line))]
    parts = (line[max(0, at.start() - QUOTED) : at.end() + QUOTED] for at, line in matches)
    return list(islice(dict.fromkeys(parts), MOST_LINES))


def graphs(log: Sequence[str]) -> str:
    """Return how many passes ran in each mode of CUDA graphs, from the tables in a log."""
    found = Counter[str]()
    for line in log:
        for mode, passes in GRAPH.findall(line):
            found[mode] += int(passes)
    modes = ", ".join(f"{mode} {passes}" for mode, passes in found.most_common())
    return f"Passes by mode of CUDA graphs: {modes or 'none were reported'}."


Work = Callable[[Services], Awaitable[Found]]
Group = tuple[str, ServicesPlan, Mapping[str, Work]]
"""A Group has the part in which an engine starts, its plan, and its other parts."""


@dataclass(slots=True)
class Quick:
    """Runs the parts. engines: has the plan and the prompts, and keeps the measurements.
    device: "cuda", or "cpu" for a trial."""

    engines: Engines
    device: str = "cuda"
    prompts: list[tuple[TokenId, ...]] = field(default_factory=list)
    texts: dict[str, Texts] = field(default_factory=dict)
    """Texts of the prompts are found by the name of what generated them."""

    log: list[str] = field(default_factory=list)
    """The current engine has printed these lines."""

    @property
    def check(self) -> Check:
        return self.engines.check

    def groups(self, folder: Path) -> list[Group]:
        """Return the engines with their parts. folder: where the adapters are."""
        base, on_gpu = self.engines.plan, self.device == "cuda"
        logged = {"VLLM_LOGGING_LEVEL": "INFO", "VLLM_LOG_STATS_INTERVAL": "1"}
        counting = ("--vllm.cudagraph-metrics", "true") if on_gpu else ()

        def stock(*more: str, rival: Rival | None = STOCK, **named: str) -> ServicesPlan:
            arguments = (*base.verifier_arguments, *counting, *more)
            environment = {**base.environment, **logged, **named}
            return replace(
                base, edges={}, verifier_arguments=arguments, environment=environment,
                rival=rival,
            )  # fmt: skip

        def ours(*more: str, **named: str) -> ServicesPlan:
            return stock(VLLMS_PORT, f"{free_port()}", *more, rival=None, **named)

        # one slot for two; on CPUs vLLM gives the last one to requests without an adapter
        slots = 1 if on_gpu else 1 + len(adapters.NAMES)
        modules = json.dumps([f"{name}={folder / name}" for name in adapters.NAMES])
        lora = (
            "--vllm.enable-lora", "true", "--vllm.max-lora-rank", f"{adapters.RANK}",
            "--vllm.max-loras", f"{slots}", "--vllm.lora-modules", modules,
        )  # fmt: skip
        graphs = {"PICOSPEC_VERIFIER__SPECULATION__UNEQUAL_GRAPHS": "true"}
        own, plain = partial(partial, self._own), partial(partial, self._plain)
        sessions = partial(partial, self._sessions)
        return [
            ("start-up", ours(), {
                "PicoSpec's texts": own(""), PLUGGED: plain(PLUGGED),
                f"{AT_ONCE} sessions": sessions(FAST), SWITCHED: self._switch,
            }),
            (f"{UNPLUGGED} starts", stock(), {
                f"{UNPLUGGED}'s texts": self._stocks, "identity": self._identity,
                UNPLUGGED: plain(UNPLUGGED),
            }),
            (f"{WITHOUT_ASYNC}, starts", stock("--vllm.async-scheduling", "false"), {
                WITHOUT_ASYNC: plain(WITHOUT_ASYNC),
            }),
            (f"{INVARIANT} start-up", ours(VLLM_BATCH_INVARIANT="1"), {
                INVARIANT: own(INVARIANT),
            }),
            (f"{ADAPTERS} start-up", ours(*lora), {ADAPTERS: self._with_adapters}),
            (f"{UNEQUAL} start-up", ours(**graphs), {
                UNEQUAL: own(UNEQUAL), f"{AT_ONCE} sessions, {UNEQUAL}": sessions(UNEQUAL),
            }),
            (f"{TWO_GPUS} start-up", ours("--vllm.tensor-parallel-size", "2"), {
                TWO_GPUS: own(TWO_GPUS),
            }),
        ]  # fmt: skip

    async def run(self) -> None:
        """Run all parts, whichever fail."""
        if self.check.out:
            self.check.out.with_suffix(".log").unlink(missing_ok=True)
        with TemporaryDirectory() as folder:
            for start, plan, works in self.groups(Path(folder)):
                if missing := await self._missing(works, Path(folder)):
                    self.check.skip(missing, start, *works)
                else:
                    await self._engine(start, plan, works)
        await self.check.run("all loads", PART_S, self.engines.table)

    async def _engine(self, start: str, plan: ServicesPlan, works: Mapping[str, Work]) -> None:
        services = Services(plan, self._line)
        limit_s = ENGINE_S if self.device == "cpu" else PART_S
        self.log.clear()
        async with AsyncExitStack() as running:
            starting = partial(self._start, running, services)
            parts = {name: (limit_s, partial(work, services)) for name, work in works.items()}
            await self.check.run_group(start, 2 * READY_WITHIN_S + 30.0, starting, parts)

    def _line(self, name: str, line: str) -> None:
        self.log.append(line)
        if self.check.out:
            with self.check.out.with_suffix(".log").open("a") as file:
                file.write(f"{name}: {line}\n")

    async def _start(self, running: AsyncExitStack, services: Services) -> Found:
        """Start an engine. Raises NotRun for what vLLM may not support here."""
        began_s, plan = perf_counter(), services.plan
        try:
            await running.enter_async_context(services)
        except ServiceError as error:
            causes = dict.fromkeys(each[0] for line in self.log if (each := CAUSE.search(line)))
            why = fenced("\n".join([*islice(causes, MOST_LINES), "", str(error)]))
            invariant = "VLLM_BATCH_INVARIANT" in plan.environment
            if invariant and not await self._stock_answers(replace(plan, rival=STOCK)):
                raise NotRun(f"vLLM alone does not answer so either.\n\n{why}") from error
            return False, why
        seconds = perf_counter() - began_s
        what = "vLLM" if plan.rival else "The verifier, with its self-test,"
        memory = await self._memory()
        quoted = fenced("\n".join([memory, *quoted_lines(self.log)]))
        return True, f"{what} was ready after {seconds:.0f} s.\n\n{quoted}"

    async def _stock_answers(self, stock: ServicesPlan) -> bool:
        """Return True if vLLM alone starts in the same environment, and answers. Without that
        it proves nothing: at its start vLLM may compute nothing."""
        self.check.step("vLLM alone starts so")
        try:
            async with Services(stock, self._line) as services, _api(services) as http:
                await answered(http, (self.prompts or [ANY_PROMPT])[0], tokens=1)
        except (ServiceError, httpx.HTTPError, ExceptionGroup):
            return False
        return True

    async def _missing(self, works: Mapping[str, Work], folder: Path) -> str:
        """Return what this host lacks for some parts; "" if it has all. Write adapters."""
        if TWO_GPUS in works and (count := await self._gpus()) < 2:
            return f"This needs two GPUs; here are {count}."
        if UNEQUAL in works and self.device == "cpu":
            return "A CPU has no CUDA graphs."
        if ADAPTERS in works:
            try:
                await asyncio.to_thread(adapters.write, self.engines.plan.target_model, folder)
            except Exception as error:  # of libraries that read any model's configuration
                return f"No adapter was made for this model: {error}"
        return ""

    async def _gpus(self) -> int:
        try:
            found, listed = await command("nvidia-smi", "--list-gpus")
        except OSError:
            return 0
        return len(listed.splitlines()) if found else 0

    async def _memory(self) -> str:
        if self.device == "cpu":
            return ""
        options = "--query-gpu=memory.used,memory.total", "--format=csv"
        return (await command("nvidia-smi", *options))[1]

    async def _own(self, name: str, services: Services) -> Found:
        """Compare texts of sessions with those of requests without one, in one engine. In a
        batch-invariant one none may differ; on two GPUs, or with other graphs, no more than in
        the control group."""
        alone = await self._asked(services)
        self._keep_sources(alone)
        sessions = await self._in_sessions(services.verifier_url, alone)
        self.texts |= {name + PLUGGED: alone, name + FAST: sessions}
        count, of = differing(sessions, alone)
        found = (
            f"{count} of {of} texts of sessions, {AT_ONCE} at once, differ from those of this "
            f"engine's requests without sessions, one at a time."
        )
        if name not in (TWO_GPUS, UNEQUAL):
            return not (name and count), found
        return self._as_control(count, of), found

    def _as_control(self, count: int, of: int) -> bool:
        """Return True if no more of the texts differ than in the control group. Raises NotRun
        without one."""
        if CONTROL not in self.texts:
            raise NotRun(f"{count} of {of} texts differ, and there is no control group.")
        control = differing(self.texts[CONTROL], self.texts[UNPLUGGED])
        return fisher((count, of), control) >= LEAST_P

    async def _with_adapters(self, services: Services) -> Found:
        """Compare texts of sessions with two adapters at once with those of requests."""
        known = await facts_of(services.verifier_url)
        alone = {name: await self._asked(services, model=name) for name in known.adapters}
        sessions = partial(self._in_sessions, services.verifier_url, at_once=AT_ONCE // 2)
        async with asyncio.TaskGroup() as tasks:
            running = {
                name: tasks.create_task(sessions(alone[name], identity))
                for name, identity in known.adapters.items()
            }
        pairs = [differing(running[name].result(), alone[name]) for name in alone]
        count, of = (sum(each) for each in zip(*pairs, strict=True))
        first, second = alone.values()
        others, _ = differing(first, second)
        found = (
            f"{count} of {of} texts of sessions, with both adapters at once, differ from those "
            f"of requests; {others} differ from one adapter to the other."
        )
        return others > 0 and self._as_control(count, of), found

    async def _stocks(self, services: Services) -> Found:
        alone, loaded = await self._asked(services), await self._asked(services, AT_ONCE)
        self._keep_sources(alone)
        self.texts |= {UNPLUGGED: alone, CONTROL: loaded}
        answers = f"{len(self.prompts)} prompts were answered with {', '.join(alone)}"
        return True, f"{answers}; alone, and {AT_ONCE} at once."

    async def _switch(self, services: Services) -> Found:
        """Let sessions go on beside a request with a grammar and after it: steps wait for one
        another while it runs, and overlap again. `identity` compares the texts."""
        if PLUGGED not in self.texts:
            raise NotRun("There are no texts to draft.")
        expected = self.texts[PLUGGED]
        async with _api(services) as http, asyncio.TaskGroup() as tasks:
            grammar = {"structured_outputs": {"regex": "[a-z ]*"}}
            asking = answered(http, self.prompts[0], tokens=TOKENS // 4, settings=grammar)
            waiting = tasks.create_task(asking)
            running = tasks.create_task(self._in_sessions(services.verifier_url, expected))
        self.texts[SWITCHED] = running.result()
        count, of = differing(running.result(), expected)
        said = f"{len(waiting.result())} tokens with a grammar were generated beside sessions"
        return True, f"{said}; {count} of {of} texts differ from those alone."

    async def _identity(self, _: Services) -> Found:
        """Compare our texts with stock vLLM's. Raises NotRun if some are missing."""
        names: Sequence[str] = (PLUGGED, FAST, SWITCHED)
        ours = {name: self.texts[name] for name in names if name in self.texts}
        if not ours or CONTROL not in self.texts:
            raise NotRun("There are no texts to compare.")
        return compared(self.texts[UNPLUGGED], self.texts[CONTROL], ours)

    async def _plain(self, name: str, services: Services) -> Found:
        """Measure requests without sessions, in vLLM's own API."""
        if not self.engines.sources:
            await self._stocks(services)
        return await self._loaded(services.plain_url, {"cloud": name}, self.engines.sessions)

    async def _sessions(self, name: str, services: Services) -> Found:
        return await self._loaded(services.verifier_url, {"picospec": name}, [AT_ONCE])

    async def _loaded(self, url: str, arms: dict[str, str], counts: Sequence[int]) -> Found:
        """Return the figures of a load, with the modes of its passes."""
        first = len(self.log)
        right, found = await self.engines.load(url, arms, counts, FAST_STEP_S)
        return right, f"{found}\n\n{graphs(self.log[first:])}"

    def _keep_sources(self, texts: Texts) -> None:
        """Let the loads ask for the greedy texts, unless there are such texts."""
        known = self.engines.sources
        self.engines.sources = known or list(map(source, self.prompts, texts[GREEDY]))

    @property
    def settings(self) -> dict[str, Mapping[str, float]]:
        """Return the settings of texts. Without a GPU stock vLLM has other noise (Model Runner
        V1), so only texts without noise are asked for."""
        on_gpu = self.device != "cpu"
        return {k: v for k, v in SETTINGS.items() if on_gpu or v["temperature"] == 0.0}

    async def _asked(self, services: Services, at_once: int = 1, **named: str) -> Texts:
        """Return the answers to all prompts with all settings, `at_once` at once. The greedy
        ones are as long as those of loads."""
        self.check.step(f"it answers, {at_once} at once")
        texts = {}
        async with _api(services) as http:
            chats = [prompt.prompt for prompt in self.engines.prompts]
            self.prompts = self.prompts or [await tokenized(http, chat) for chat in chats]
            for name, settings in self.settings.items():
                tokens = self.engines.tokens if name == GREEDY else TOKENS
                ask = partial(answered, http, tokens=tokens, settings={**settings, **named})
                texts[name] = await self._crowded(at_once, ask, self.prompts)
        return texts

    async def _in_sessions(
        self, url: str, expected: Texts, identity: str = "", at_once: int = AT_ONCE
    ) -> Texts:
        """Return the same of sessions, whose edges draft along the texts expected. identity: of
        an adapter."""
        self.check.step(f"sessions, {at_once} at once")
        size = (await facts_of(url)).vocabulary_size
        texts = {}
        for name, settings in self.settings.items():
            asked = list(map(source, self.prompts, expected[name]))
            drafter = ScriptedDrafter({s.prompt: s for s in asked}, STEPS, size)
            sampling, extras = in_session(settings)
            async with scripted(url, drafter, sampling, identity, **extras) as ask:
                text = partial(_text, ask)
                texts[name] = await self._crowded(at_once, text, asked)
        return texts

    async def _crowded(
        self, at_once: int, ask: Callable[[Asked], Awaitable[Text]], asked: Sequence[Asked]
    ) -> list[Text]:
        """Return the texts of what is asked, `at_once` at once, and as many to the end: some
        are asked once more, so that the last ones are not alone."""
        texts, most = list[Text](), max(len(asked), at_once)
        crowd = list(islice(cycle(asked), most + -most % at_once))
        for first in range(0, len(crowd), at_once):
            async with asyncio.TaskGroup() as tasks:
                batch = crowd[first : first + at_once]
                running = [tasks.create_task(_awaited(ask(each))) for each in batch]
            texts += [task.result() for task in running]
        return texts[: len(asked)]


def in_session(settings: Mapping[str, float]) -> tuple[Sampling, dict[str, float]]:
    """Return the same settings as an edge has them: a Sampling, and what it calls extras."""
    own = {name: settings[name] for name in Sampling.__struct_fields__ if name in settings}
    extras = {k: v for k, v in settings.items() if k not in own and v != NEUTRAL[k]}
    return msgspec.convert(own, Sampling), extras


async def _text(ask: Client, asked: Source) -> Text:
    return (await ask(asked, min(TOKENS, len(asked.tokens)))).text


async def _awaited(text: Awaitable[Text]) -> Text:
    return await text


def source(prompt: Text, text: Text) -> Source:
    """Return what a scripted edge drafts along a text: a share of its tokens."""
    return Source(prompt, text, guessed(text, RIGHT, random.Random(len(prompt)), RIGHT))


def _api(services: Services) -> httpx.AsyncClient:
    """Return a client of vLLM's own API."""
    return httpx.AsyncClient(base_url=services.plain_url, trust_env=False, timeout=TIMEOUT_S)
