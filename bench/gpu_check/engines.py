"""Measures vLLM and PicoSpec under the same load, one engine after another.

Memory seldom holds two engines. Stock vLLM comes first: scripted edges draft its greedy
answers, and texts are compared with them.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from statistics import median
from time import perf_counter
from types import MappingProxyType
from typing import Any, Final

import httpx

from bench.capacity import ARMS, PLAIN, Load, Row
from bench.gpu_check.parts import Check, NotRun
from bench.identity import (
    EDGES,
    LIKELIEST,
    SEED,
    TIMEOUT_S,
    Answer,
    ask,
    batched,
    compare,
    explainer,
    is_defect,
    judged,
    tally,
)
from bench.prompts import Prompt
from bench.run.client import Client, Question, Reply
from bench.run.rivals import HEAD, Rival
from bench.run.rivals import PLAIN as PLAIN_ENGINE
from bench.run.services import READY_WITHIN_S, EdgePlan, Services, ServicesPlan
from bench.simulator.source import Source, traced
from bench.statistics import markdown
from bench.traces import Subject, replayed
from edge_agent.draft.loading import find
from local_models.store import open_store
from local_models.tokenizer_file import TokenizerFile
from picospec.link import Conditions
from speculation.messages import TokenId

# Collects the loads of engines, and compares engines that must not be slower than others.
#
# Engines run one after another. If one is too slow, its baseline is measured again after it,
# and the slower of the two counts, because the host may have become slower in between.

UNPLUGGED: Final = "stock vLLM"
AGAIN: Final = ", again"
"""The name of an engine that is measured again ends with this."""

MIN_RATIO: Final = 0.9
"""This is the least ratio of tokens/s: of requests without sessions, with the plugin and
without it; of sessions and requests without one; and of sessions beside vLLM's own speculation,
and this speculation without them."""

MAX_BUSY: Final = 0.9
"""Clients that are busy for more of the time are what is measured: no ratio is concluded."""

HEADLINE: Final = (
    "sessions", "engine", "tokens/s", "/ stock", "slowest", "gap p50, p95, ms",
    "stock's text", "clients busy",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Loads:
    rows: dict[tuple[int, str], Row] = field(default_factory=dict)
    """The rows are found by the number of sessions and the engine's name."""

    def add(self, name: str, row: Row) -> list[str]:
        """Add a row; return its line of the table."""
        self.rows[row.sessions, name] = row
        return self._line(name, row)

    def has(self, name: str) -> bool:
        return any(each == name for _, each in self.rows)

    def shares(self, baselines: Mapping[str, str]) -> dict[tuple[str, int], float]:
        """Return, by engine and number of sessions, its share of the tokens/s of its baseline,
        of which the slower measurement counts; none where the clients were full."""
        return {
            place: max(ratios)
            for place, (row, stocks) in self._pairs(baselines).items()
            if not any(map(_is_full, (row, *stocks)))
            if (ratios := [row.measured.tokens_per_s / s.measured.tokens_per_s for s in stocks])
        }

    def full(self, baselines: Mapping[str, str]) -> list[tuple[str, int]]:
        """Return the loads whose ratio is not measured, because the clients were full."""
        pairs = self._pairs(baselines).items()
        return [place for place, (row, stocks) in pairs if any(map(_is_full, (row, *stocks)))]

    def _pairs(
        self, baselines: Mapping[str, str]
    ) -> dict[tuple[str, int], tuple[Row, list[Row]]]:
        """Return, by engine and number of sessions, its load and those of its baseline."""
        found = {}
        for (sessions, name), row in self._sorted():
            stock = baselines.get(name, "")
            names = (sessions, stock), (sessions, stock + AGAIN)
            if stocks := [self.rows[each] for each in names if each in self.rows]:
                found[name, sessions] = row, stocks
        return found

    def compared(self, baselines: Mapping[str, str]) -> Iterator[str]:
        """Yield paragraphs: each promise, notes on the figures, and all figures."""
        lines = [
            f"- {name}, {sessions} at once: {share:.2f} of the tokens/s of {baselines[name]}"
            f"{'' if share >= MIN_RATIO else '. **This is too slow.**'}"
            for (name, sessions), share in self.shares(baselines).items()
        ]
        lines += [
            f"- {name}, {sessions} at once: not measured, the clients were full"
            for name, sessions in self.full(baselines)
        ]
        yield "\n".join([f"{MIN_RATIO:g} is the least for:\n", *lines])
        changes = [
            ratio
            for (_, name), row in self.rows.items()
            if name.endswith(AGAIN)
            for ratio in self._ratios(row, name.removesuffix(AGAIN))
        ]
        if not all(MIN_RATIO <= change <= 1 / MIN_RATIO for change in changes):
            text = ", ".join(f"{change:.2f}" for change in changes)
            yield (
                f"**The host was not steady**: measured again, an engine made {text} of its "
                "own tokens/s. Engines compare badly here; run this where nothing else runs."
            )
        yield f"Clients that are busy for more than {MAX_BUSY:g} of the time are full."
        yield markdown(HEADLINE, [self._line(name, row) for (_, name), row in self._sorted()])

    def _sorted(self) -> list[tuple[tuple[int, str], Row]]:
        return sorted(self.rows.items(), key=lambda item: item[0][0])

    def _ratios(self, row: Row, name: str) -> list[float]:
        """Return the ratio of a row to another engine's, if that one was measured."""
        load = self.rows.get((row.sessions, name))
        return [row.measured.tokens_per_s / load.measured.tokens_per_s] if load else []

    def _line(self, name: str, row: Row) -> list[str]:
        own, ratio = row.measured, "".join(f"{r:.2f}" for r in self._ratios(row, UNPLUGGED))
        return [
            f"{row.sessions}", name, f"{own.tokens_per_s:.1f}", ratio,
            f"{own.slowest_tokens_per_s:.2f}", f"{own.gap_ms_p50:.0f}, {own.gap_ms_p95:.0f}",
            f"{own.scripted_share:.2f}" if row.arm == "picospec" else "",
            f"{row.busy_share:.2f}",
        ]  # fmt: skip


def _is_full(row: Row) -> bool:
    return row.busy_share > MAX_BUSY


ENGINE_S: Final = 900.0
"""An engine must start and be measured within this many seconds."""

RTT_MS: Final = 20.0
STEP_S: Final = 0.024
"""The scripted edges have this round trip, and a step of their draft model takes STEP_S, as on
a laptop's processor."""

FAST_STEP_S: Final = 0.005
"""A step takes this long on a laptop with a GPU."""

PLUGGED: Final = "with the plugin, no sessions"
ALONE: Final = "PicoSpec"
FAST: Final = f"{ALONE}, draft steps of {1000 * FAST_STEP_S:g} ms"
MERGED: Final = f"{ALONE} merged with "
STOCK: Final = f"{UNPLUGGED}, "
OF_ARMS: Final = {"cloud": PLUGGED, "picospec": ALONE}


@dataclass(slots=True)
class Engines:
    """Measures the engines of a host, and keeps the measurements."""

    plan: ServicesPlan
    prompts: Sequence[Prompt]
    tokens: int
    sessions: Sequence[int]
    head: str = ""
    """A head has this `speculative_config` of vLLM, as JSON; "" means that there is no head."""

    check: Check = field(default_factory=Check)
    texts: list[Answer] = field(default_factory=list)
    """Stock vLLM gave these answers to the prompts at temperature 0."""

    sources: list[Source] = field(default_factory=list)
    loads: Loads = field(default_factory=Loads)

    @property
    def rivals(self) -> dict[str, Rival]:
        """Return the kinds of vLLM's own speculation, by name."""
        head = {"head": Rival(HEAD, config=self.head)} if self.head else {}
        return {"n-gram": Rival("cloud-ngram", 4), **head}

    @property
    def baselines(self) -> dict[str, str]:
        """Return for each name in the report the engine that it must not be slower than."""
        merged = {MERGED + kind: STOCK + kind for kind in self.rivals}
        return {PLUGGED: UNPLUGGED, ALONE: UNPLUGGED, FAST: UNPLUGGED, **merged}

    async def check_stock(self) -> None:
        """Measure vLLM without the plugin."""
        if await self._measure(UNPLUGGED):
            for kind in self.rivals:
                await self._measure(STOCK + kind)

    async def check_merged(self, device: str) -> None:
        """Measure sessions beside vLLM's own speculation."""
        for kind, rival in self.rivals.items():
            name = MERGED + kind
            if device == "cpu":
                self.check.skip("Model Runner V1 has sessions in its place.", name)
                continue
            config = json.dumps(rival.speculation(""))
            more = (*self.plan.verifier_arguments, "--vllm.speculative-config", config)
            plan = replace(self.plan, verifier_arguments=more)
            work = partial(self._engine, name, plan, self.sessions)
            await self.check.run(name, ENGINE_S, work)

    async def check_again(self) -> None:
        """Repeat the baseline of each promise that seemed broken: if something has slowed the
        host down since, it slows down both."""
        for stock in dict.fromkeys(self.baselines.values()):
            names = {name: each for name, each in self.baselines.items() if each == stock}
            shares = self.loads.shares(names)
            slow = {sessions for (_, sessions), share in shares.items() if share < MIN_RATIO}
            if slow and not self.loads.has(stock + AGAIN):
                await self._measure(stock, AGAIN, sorted(slow))

    async def _measure(
        self, name: str, again: str = "", sessions: Sequence[int] | None = None
    ) -> bool:
        rival = self.rivals.get(name.removeprefix(STOCK), Rival(PLAIN_ENGINE))
        plan, counts = replace(self.plan, rival=rival), sessions or self.sessions
        work = partial(self._engine, name + again, plan, counts)
        return await self.check.run(name + again, ENGINE_S, work)

    async def _engine(
        self, name: str, plan: ServicesPlan, sessions: Sequence[int]
    ) -> tuple[bool, str]:
        """Start an engine and measure it under load."""
        self.check.step("the engine starts")
        async with Services(replace(plan, edges={})) as services:
            if not self.sources:
                self.check.step("it answers the prompts, and the draft model drafts along")
                await self.record(services.verifier_url)
            arm = "cloud" if plan.rival else "picospec"
            return await self.load(services.verifier_url, {arm: name}, sessions)

    async def load(
        self,
        url: str,
        names: dict[str, str],
        sessions: Sequence[int],
        step_s: float = STEP_S,
    ) -> tuple[bool, str]:
        """Measure arms. names: an arm's name in the report. step_s: see STEP_S."""
        if not self.sources:
            return False, "No engine gave answers to replay."
        arms = PLAIN if names.keys() == {*PLAIN} else tuple(arm for arm in ARMS if arm in names)
        load, lines = Load(url, self.sources, RTT_MS, step_s), list[list[str]]()
        self.check.step(f"it is loaded with {', '.join(map(str, sessions))} at once")
        async for row in load.rows(sessions, arms):
            line = self.loads.add(names[row.arm], row)
            lines.append(line)
            self.check.step(f"{line[1]}, {line[0]} at once: {line[2]} tokens/s")
        return True, markdown(HEADLINE, lines)

    async def record(self, url: str) -> None:
        """Let stock vLLM answer the prompts, and the draft model draft along its answers."""
        async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=TIMEOUT_S) as http:
            answers = list[tuple[Subject, Sequence[TokenId], Sequence[TokenId]]]()
            for prompt in self.prompts:
                prompt_tokens = await tokenized(http, prompt.prompt)
                subject = Subject(prompt, prompt.family, 0.0, SEED)
                answers.append(
                    (
                        subject,
                        prompt_tokens,
                        await answered(http, prompt_tokens, tokens=self.tokens),
                    )
                )
        asking = partial(ask, url, "stock", temperature=0.0, tokens=self.tokens)
        self.texts = [await asking(prompt, likeliest=LIKELIEST) for prompt in self.prompts]
        file = find(self.plan.draft_model, open_store(os.environ))
        traces = await asyncio.to_thread(lambda: list(replayed(file, answers)))
        self.sources = [traced(trace) for trace in traces]

    async def table(self) -> tuple[bool, str]:
        """Show all loads. Fails if a promise is broken, or if the first was not measured.
        Raises NotRun if it cannot be concluded, because the clients were full."""
        conditions = (
            f"{RTT_MS:g} ms away, draft steps of {1000 * STEP_S:g} ms unless others are named, "
            f"at most {self.tokens} tokens, temperature 0."
        )
        shares = self.loads.shares(self.baselines)
        found = "\n\n".join([conditions, *self.loads.compared(self.baselines)])
        kept = min(shares.values(), default=1.0) >= MIN_RATIO
        if not any(name == PLUGGED for name, _ in shares):
            if kept and self.loads.full({PLUGGED: UNPLUGGED}):
                raise NotRun(found)
            return False, found
        return kept, found


NOTHING: Final[Mapping[str, object]] = MappingProxyType({})


async def tokenized(http: httpx.AsyncClient, chat: str) -> tuple[TokenId, ...]:
    """Return the tokens of a prompt, by vLLM's chat template."""
    messages = [{"role": "user", "content": chat}]
    return tuple((await _post(http, "/tokenize", messages=messages))["tokens"])


async def answered(
    http: httpx.AsyncClient,
    prompt: Sequence[TokenId],
    *,
    tokens: int,
    settings: Mapping[str, object] = NOTHING,
) -> Sequence[TokenId]:
    """Return vLLM's answer, at temperature 0 unless the settings say otherwise."""
    body = {"prompt": prompt, "max_tokens": tokens, "temperature": 0, "return_token_ids": True}
    choice = (await _post(http, "/v1/completions", **{**body, **settings}))["choices"][0]
    return list[TokenId](choice["token_ids"])


async def _post(http: httpx.AsyncClient, path: str, **body: object) -> dict[str, Any]:
    return dict((await http.post(path, json=body)).raise_for_status().json())


# Checks running services: their start, their texts, and `picospec` against `cloud`.

LINK: Final = Conditions(rtt_ms=20.0)
"""Speeds are compared over this link between user and GPU host."""

CLIENTS: Final = (1, 8)
"""Speeds are compared with these numbers of answers at once, one load after the other."""

TURNS: Final = 2

PARTS: Final = {
    "start-up": READY_WITHIN_S + 30.0,
    "identity": 300.0,
    "cloud against picospec": 300.0,
    "sessions": ENGINE_S,
}
"""Each part fails after this many seconds."""

HEADINGS: Final = ("clients", "arm", "tokens/s in all", "first text, p50 ms")


@dataclass(frozen=True, slots=True)
class Serving:
    """Runs the checks of services. engines: has their plan and prompts, keeps the measurements
    of other engines, and gets the loads of this one."""

    engines: Engines

    async def check(self) -> None:
        """Start the services once, and run all parts with them."""
        check = self.engines.check
        edges = {"picospec": EdgePlan(link=LINK), "bad": EDGES["bad"]}
        services = Services(replace(self.engines.plan, edges=edges))
        (start, start_s), *others = PARTS.items()
        async with AsyncExitStack() as running:
            if not await check.run(start, start_s, partial(_start, running, services)):
                return check.skip("The services did not start.", *dict(others))
            works = (self._texts, self.speeds, self._sessions)
            for (name, limit_s), work in zip(others, works, strict=True):
                await check.run(name, limit_s, partial(work, services))

    async def _texts(self, services: Services) -> tuple[bool, str]:
        """Compare the texts of edges with the plain engine's. Near-ties are no defect."""
        async with httpx.AsyncClient(base_url=services.verifier_url, trust_env=False) as http:
            packed = (await http.get("/v1/tokenizer")).raise_for_status().content
        explained = explainer(TokenizerFile.unpack(packed).open().vocabulary)
        batches = batched((0.0, 1.0), self.engines.prompts, max(CLIENTS))
        asking = partial(ask, tokens=self.engines.tokens, likeliest=LIKELIEST)
        urls = services.verifier_url, services.edge_urls
        answers = list[Answer]()
        async for answer in compare(*urls, batches, asking, explained):
            answers.append(answer)
            self.engines.check.step(
                f"{answer.arm} answered at temperature {answer.temperature:g}"
            )
        stock = {answer.prompt: answer for answer in self.engines.texts}
        answers += [
            judged(replace(each, arm="plain, of stock vLLM's"), stock[each.prompt], explained)
            for each in answers
            if each.arm == "plain" and each.temperature == 0 and each.prompt in stock
        ]
        lines = [f"- {line}" for line in tally(answers)]
        if idle := not any(answer.reply.accepted for answer in answers):
            lines.append("- No draft token was accepted, so this shows nothing.")
        return not (idle or any(map(is_defect, answers))), "\n".join(lines)

    async def _sessions(self, services: Services) -> tuple[bool, str]:
        """Measure the verifier under load, without sessions, and with those of two devices."""
        url, counts = services.verifier_url, self.engines.sessions
        right, slow = await self.engines.load(url, OF_ARMS, counts)
        fast = await self.engines.load(url, {"picospec": FAST}, counts, FAST_STEP_S)
        return right and fast[0], f"{slow}\n\n{fast[1]}"

    async def speeds(self, services: Services) -> tuple[bool, str]:
        """Measure both arms alternately at each load, with prompts that were read before."""
        cloud_url, _ = await services.linked(services.verifier_url, LINK)
        urls = {"cloud": cloud_url, "picospec": services.edge_urls["picospec"]}
        lines, ratios = [], []
        for clients in CLIENTS:
            replies: dict[str, list[Reply]] = {arm: [] for arm in urls}
            seconds = dict.fromkeys(urls, 0.0)
            for turn in range(TURNS):
                for arm in sorted(urls, reverse=turn % 2 == 1):
                    self.engines.check.step(f"{clients} at once ask {arm}, turn {turn + 1}")
                    answered, took_s = await self.load(urls[arm], clients)
                    replies[arm] += answered
                    seconds[arm] += took_s
            rates = {arm: sum(r.tokens for r in replies[arm]) / seconds[arm] for arm in urls}
            ratios.append(rates["picospec"] / rates["cloud"])
            for arm, rate in rates.items():
                first_s = median([(*r.arrivals_s, r.seconds)[0] for r in replies[arm]])
                lines.append((f"{clients}", arm, f"{rate:.1f}", f"{1000 * first_s:.0f}"))
        ratios_text = " and ".join(f"{ratio:.2f}" for ratio in ratios)
        text = (
            f"{LINK.rtt_ms:g} ms away, at most {self.engines.tokens} tokens, temperature 0: "
            f"`picospec` made {ratios_text} times as many tokens/s as `cloud`; "
            f"{MIN_RATIO:g} is the least."
        )
        return min(ratios) >= MIN_RATIO, f"{text}\n\n{markdown(HEADINGS, lines)}"

    async def load(self, url: str, clients: int) -> tuple[list[Reply], float]:
        """Return the answers to all prompts, `clients` at once, and the seconds they took."""
        left, replies, began_s = iter(self.engines.prompts), [], perf_counter()

        async def ask_what_is_left() -> None:
            http = httpx.AsyncClient(base_url=url, trust_env=False, timeout=TIMEOUT_S)
            async with http:
                client = Client(http)
                for each in left:
                    question = Question(each.prompt, 0.0, SEED, self.engines.tokens)
                    replies.append(await client.ask(question))

        async with asyncio.TaskGroup() as tasks:
            for _ in range(clients):
                tasks.create_task(ask_what_is_left())
        return replies, perf_counter() - began_s


async def _start(running: AsyncExitStack, services: Services) -> tuple[bool, str]:
    """Start the services. Raises ServiceError if one dies or takes too long."""
    began_s = perf_counter()
    await running.enter_async_context(services)
    seconds = perf_counter() - began_s
    return True, f"Verifier (with its self-test) and edges were ready after {seconds:.1f} s."
