"""Checks a GPU host within ten minutes: our verifier first, then what it is compared with.

Four engines run one after another, and each part is reported when it ends:

    PicoSpec                   its start, its texts, requests without sessions, sessions
    stock vLLM                 the same requests; and its texts, alone and many at once
    without async scheduling   the same requests
    batch-invariant            texts of sessions and of requests without sessions

A session's text may differ from stock vLLM's where two logits are nearly equal, because passes
of other shapes round differently. Stock vLLM differs from itself likewise when it is loaded:
that is the control group. Sessions may not differ more often than it does. A batch-invariant
engine rounds in one way, so nothing may differ there.
"""

from __future__ import annotations

import asyncio
import os
import random
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import cycle, islice, pairwise
from pathlib import Path
from time import perf_counter
from typing import Final, TypeVar

import httpx
import msgspec

from bench.capacity import ScriptedDrafter, scripted
from bench.gpu_check.engines import (
    ENGINE_S,
    FAST,
    FAST_STEP_S,
    PLUGGED,
    UNPLUGGED,
    Engines,
    answered,
    tokenized,
)
from bench.gpu_check.parts import Check, NotRun, command, fenced
from bench.identity import TIMEOUT_S
from bench.run.rivals import PLAIN, Rival
from bench.run.services import READY_WITHIN_S, Services, ServicesPlan, free_port
from bench.simulator.hosts import Curve
from bench.simulator.source import WRONG, Source
from bench.statistics import fisher, markdown
from gateway.hosting.processes import ServiceError
from picospec.link import HOST
from speculation.messages import ModelFacts, TokenId

PART_S: Final = 120.0
"""Each part but a start must end within this many seconds on a GPU."""

TOKENS: Final = 32
"""Texts are compared up to this many tokens: the longer they are, the more of them have a
near-tie, and the less a defect would stand out."""

AT_ONCE: Final = 16
RIGHT: Final = 0.8
"""This share of the edges' draft tokens is right."""

LEAST_P: Final = 0.05
"""Sessions fail if chance alone would make them differ so often with less probability."""

WITHOUT_ASYNC: Final = f"{UNPLUGGED}, no async scheduling"
INVARIANT: Final = "batch-invariant"
CONTROL: Final = f"{UNPLUGGED}, {AT_ONCE} at once"
PORT: Final = "--vllm.port"

TELLING: Final = re.compile(
    r"(?i)cuda ?graph|captur|async(hronous)? sched|attention.{0,20} backend|model runner"
    r"|kv cache (size|memory)|memory usage|maximum concurrency|self.?test"
)
"""The report quotes each match of this in an engine's log, with QUOTED characters around it."""

QUOTED: Final = 70
CAUSE: Final = re.compile(r"\b\w+(Error|Exception): .*")
"""Errors in the log of an engine that does not start are quoted, too."""

MOST_LINES: Final = 16

Text = Sequence[TokenId]
Texts = list[Text]
Asked = TypeVar("Asked")


def differing(texts: Texts, expected: Texts) -> tuple[int, int]:
    """Return how many of the texts differ from those expected, and how many there are."""
    pairs = list(zip(texts, expected, strict=True))
    return sum(list(a[:TOKENS]) != list(b[:TOKENS]) for a, b in pairs), len(pairs)


def compared(expected: Texts, control: Texts, groups: Mapping[str, Texts]) -> tuple[bool, str]:
    """Compare groups of texts with those expected, and how often they differ with how often
    those of the control group do."""
    own = differing(control, expected)
    lines, least = [(f"control: {CONTROL}", _of(*own), "")], 1.0
    for name, texts in groups.items():
        found = differing(texts, expected)
        least = min(least, p := fisher(found, own))
        lines.append((name, _of(*found), f"{p:.3f}"))
    why = f"p below {LEAST_P:g} fails: the group differs more often than the control group."
    head = (f"compared with {UNPLUGGED}, alone", "differ", "p")
    return bool(groups) and least >= LEAST_P, f"{markdown(head, lines)}\n\n{why}"


def _of(hits: int, size: int) -> str:
    return f"{hits} of {size}"


def quoted_lines(log: Sequence[str]) -> list[str]:
    """Return the telling parts of a log's lines, each once."""
    found = [(match, line) for line in log if (match := TELLING.search(line))]
    parts = (line[max(0, at.start() - QUOTED) : at.end() + QUOTED] for at, line in found)
    return list(islice(dict.fromkeys(parts), MOST_LINES))


def source(prompt: Text, text: Text) -> Source:
    """Return what a scripted edge drafts along a text: a share of its tokens."""
    chance = random.Random(len(prompt))
    drafts = [token if chance.random() < RIGHT else WRONG + token for token in text]
    return Source(prompt, text, drafts, [RIGHT] * len(text))


Work = Callable[[Services], Awaitable[tuple[bool, str]]]


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

    @property
    def plans(self) -> dict[str, ServicesPlan]:
        """Return the engines, by the names of the parts in which they start."""
        told = {**self.engines.plan.environment, "VLLM_LOGGING_LEVEL": "INFO"}
        stock = replace(self.engines.plan, edges={}, rival=Rival(PLAIN), environment=told)
        more = (*stock.verifier_arguments, PORT, f"{free_port()}")
        ours = replace(stock, rival=None, verifier_arguments=more)
        sync = (*stock.verifier_arguments, "--vllm.async-scheduling", "false")
        invariant = {**told, "VLLM_BATCH_INVARIANT": "1"}
        return {
            "start-up": ours,
            f"{UNPLUGGED} starts": stock,
            f"{WITHOUT_ASYNC}, starts": replace(stock, verifier_arguments=sync),
            f"{INVARIANT} start-up": replace(ours, environment=invariant),
        }

    async def run(self) -> None:
        """Run all parts, whichever fail."""
        works: Sequence[Mapping[str, Work]] = (
            {
                "PicoSpec's texts": partial(self._own, ""),
                PLUGGED: partial(self._plain, PLUGGED),
                f"{AT_ONCE} sessions": self._sessions,
            },
            {
                f"{UNPLUGGED}'s texts": self._stocks,
                "identity": self._identity,
                UNPLUGGED: partial(self._plain, UNPLUGGED),
            },
            {WITHOUT_ASYNC: partial(self._plain, WITHOUT_ASYNC)},
            {INVARIANT: partial(self._own, INVARIANT)},
        )
        if self.check.out:
            self.check.out.with_suffix(".log").unlink(missing_ok=True)
        for (start, plan), own in zip(self.plans.items(), works, strict=True):
            await self._engine(start, plan, own)
        await self.check.run("all loads", PART_S, self.engines.table)

    async def _engine(self, start: str, plan: ServicesPlan, works: Mapping[str, Work]) -> None:
        services, limit_s = Services(plan, self._line), PART_S
        if self.device == "cpu":
            limit_s = ENGINE_S
        self.log.clear()
        async with AsyncExitStack() as running:
            starting = partial(self._start, running, services)
            if not await self.check.run(start, READY_WITHIN_S + 30.0, starting):
                return self.check.skip("Its engine did not start.", *works)
            for name, work in works.items():
                await self.check.run(name, limit_s, partial(work, services))

    def _line(self, name: str, line: str) -> None:
        self.log.append(line)
        if self.check.out:
            with self.check.out.with_suffix(".log").open("a") as file:
                file.write(f"{name}: {line}\n")

    async def _start(self, running: AsyncExitStack, services: Services) -> tuple[bool, str]:
        """Start an engine. Raises NotRun for what vLLM may not support here."""
        began_s, plan = perf_counter(), services.plan
        try:
            await running.enter_async_context(services)
        except ServiceError as error:
            causes = dict.fromkeys(each[0] for line in self.log if (each := CAUSE.search(line)))
            why = fenced("\n".join([*islice(causes, MOST_LINES), "", str(error)]))
            if "VLLM_BATCH_INVARIANT" in plan.environment and "self-test" not in why:
                raise NotRun(f"vLLM does not start so here.\n\n{why}") from error
            return False, why
        seconds = perf_counter() - began_s
        what = "vLLM" if plan.rival else "The verifier, with its self-test,"
        memory = await self._memory(services)
        quoted = fenced("\n".join([memory, *quoted_lines(self.log)]))
        return True, f"{what} was ready after {seconds:.0f} s.\n\n{quoted}"

    async def _memory(self, services: Services) -> str:
        if self.device == "cuda":
            asked = "--query-gpu=memory.used,memory.total", "--format=csv"
            return (await command("nvidia-smi", *asked))[1]
        held = sum(resident_bytes(group) for group in services.pids.values())
        return f"processes hold {held / 2**20:.0f} MiB"

    async def _own(self, name: str, services: Services) -> tuple[bool, str]:
        """Compare texts of sessions with those of requests without one, in one engine. Only a
        batch-invariant one must not differ, and is named."""
        alone = await self._asked(_stock_url(services))
        asked = list(map(source, self.prompts, alone))
        self.engines.sources = self.engines.sources or asked
        sessions = await self._in_sessions(services.verifier_url, asked)
        self.texts |= {name + PLUGGED: alone, name + FAST: sessions}
        count, of = differing(sessions, alone)
        found = (
            f"{count} of {of} texts of sessions, {AT_ONCE} at once, differ from those of this "
            f"engine's requests without sessions, one at a time."
        )
        return not (name and count), found

    async def _stocks(self, services: Services) -> tuple[bool, str]:
        url = services.verifier_url
        alone, loaded = await self._asked(url), await self._asked(url, AT_ONCE)
        self.engines.sources = self.engines.sources or list(map(source, self.prompts, alone))
        self.texts |= {UNPLUGGED: alone, CONTROL: loaded}
        return True, f"{len(alone)} prompts were answered alone, and {AT_ONCE} at once."

    async def _identity(self, _: Services) -> tuple[bool, str]:
        """Compare our texts with stock vLLM's. Raises NotRun if some are missing."""
        names: Sequence[str] = (PLUGGED, FAST)
        ours = {name: self.texts[name] for name in names if name in self.texts}
        if not ours or CONTROL not in self.texts:
            raise NotRun("There are no texts to compare.")
        return compared(self.texts[UNPLUGGED], self.texts[CONTROL], ours)

    async def _plain(self, name: str, services: Services) -> tuple[bool, str]:
        """Measure requests without sessions, in vLLM's own API."""
        if not self.engines.sources:
            await self._stocks(services)
        return await self.engines.load(
            _stock_url(services), {"cloud": name}, self.engines.sessions
        )

    async def _sessions(self, services: Services) -> tuple[bool, str]:
        arms = {"picospec": FAST}
        return await self.engines.load(services.verifier_url, arms, [AT_ONCE], FAST_STEP_S)

    async def _asked(self, url: str, at_once: int = 1) -> Texts:
        """Return the answers to all prompts, `at_once` at once."""
        self.check.step(f"it answers, {at_once} at once")
        async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=TIMEOUT_S) as http:
            chats = [prompt.prompt for prompt in self.engines.prompts]
            self.prompts = self.prompts or [await tokenized(http, chat) for chat in chats]
            ask = partial(answered, http, tokens=self.engines.tokens)
            return await self._crowded(at_once, ask, self.prompts)

    async def _in_sessions(self, url: str, sources: Sequence[Source]) -> Texts:
        self.check.step(f"sessions, {AT_ONCE} at once")
        async with httpx.AsyncClient(base_url=url, trust_env=False) as api:
            known = (await api.get("/v1/model-facts")).raise_for_status().content
        size = msgspec.json.decode(known, type=ModelFacts).vocabulary_size
        drafter = ScriptedDrafter({s.prompt: s for s in sources}, Curve({1: FAST_STEP_S}), size)
        async with scripted(url, drafter) as ask:

            async def text(asked: Source) -> Text:
                return (await ask(asked, min(TOKENS, len(asked.tokens)))).text

            return await self._crowded(AT_ONCE, text, sources)

    async def _crowded(
        self, at_once: int, ask: Callable[[Asked], Awaitable[Text]], asked: Sequence[Asked]
    ) -> Texts:
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


async def _awaited(text: Awaitable[Text]) -> Text:
    return await text


def _stock_url(services: Services) -> str:
    """Return the address of vLLM's own API: our verifier has it beside its own."""
    named = dict(pairwise(services.plan.verifier_arguments))
    own = None if services.plan.rival else named.get(PORT)
    return f"http://{HOST}:{own}" if own else services.verifier_url


def resident_bytes(group: int) -> int:
    """Return the memory of the living processes of a group; 0 if not on Linux."""
    pages = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError, ValueError):
            fields = stat.read_text().rpartition(")")[2].split()  # proc(5): from `state` on
            pages += int(fields[21]) * (int(fields[2]) == group)
    return pages * os.sysconf("SC_PAGE_SIZE")
