"""Measures vLLM and PicoSpec under the same load, one engine after another.

Memory seldom holds two engines. Stock vLLM comes first: scripted edges draft its greedy
answers, and texts are compared with them.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from types import MappingProxyType
from typing import Any, Final

import httpx

from bench.capacity import ARMS, PLAIN, Load
from bench.gpu_check.loads import AGAIN, HEADLINE, MIN_RATIO, UNPLUGGED, Loads
from bench.gpu_check.parts import Check, Found, NotRun
from bench.identity import LIKELIEST, SEED, TIMEOUT_S, Answer, ask
from bench.prompts import Prompt
from bench.recording import Subject, replayed
from bench.run.client import Question
from bench.run.rivals import HEAD, Rival
from bench.run.rivals import PLAIN as PLAIN_ENGINE
from bench.run.services import Services, ServicesPlan
from bench.simulator.source import Source, traced
from bench.tables import markdown
from bench.traces import Text
from local_models.store import open_store
from speculation.model_facts import TokenId

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


Counts = Sequence[int]
"""These are numbers of sessions, or of requests, at once."""


@dataclass(slots=True)
class Engines:
    """Measures the engines of a host, and keeps the measurements."""

    plan: ServicesPlan
    prompts: Sequence[Prompt]
    tokens: int
    sessions: Counts
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
            await self._part(name, replace(self.plan, verifier_arguments=more))

    async def check_again(self) -> None:
        """Repeat the baseline of each promise that seemed broken: if something has slowed the
        host down since, it slows down both."""
        for stock in dict.fromkeys(self.baselines.values()):
            names = {name: each for name, each in self.baselines.items() if each == stock}
            shares = self.loads.shares(names)
            slow = {sessions for (_, sessions), share in shares.items() if share < MIN_RATIO}
            if slow and not self.loads.has(stock + AGAIN):
                await self._measure(stock, AGAIN, sorted(slow))

    async def _measure(self, name: str, again: str = "", sessions: Counts = ()) -> bool:
        rival = self.rivals.get(name.removeprefix(STOCK), Rival(PLAIN_ENGINE))
        return await self._part(name + again, replace(self.plan, rival=rival), sessions)

    async def _part(self, name: str, plan: ServicesPlan, sessions: Counts = ()) -> bool:
        work = partial(self._engine, name, plan, sessions or self.sessions)
        return await self.check.run(name, ENGINE_S, work)

    async def _engine(self, name: str, plan: ServicesPlan, sessions: Counts) -> Found:
        """Start an engine and measure it under load."""
        self.check.step("the engine starts")
        async with Services(replace(plan, edges={})) as services:
            if not self.sources:
                self.check.step("it answers the prompts, and the draft model drafts along")
                await self.record(services.verifier_url)
            arm = "cloud" if plan.rival else "picospec"
            return await self.load(services.verifier_url, {arm: name}, sessions)

    async def load(
        self, url: str, names: Mapping[str, str], sessions: Counts,
        step_s: float = STEP_S,
    ) -> Found:  # fmt: skip
        """Measure arms. names: an arm's name in the report. step_s: see STEP_S."""
        if not self.sources:
            return False, "No engine gave answers to replay."
        arms = PLAIN if names.keys() == {*PLAIN} else tuple(arm for arm in ARMS if arm in names)
        lines = list[list[str]]()
        self.check.step(f"it is loaded with {', '.join(map(str, sessions))} at once")
        async for row in Load(url, self.sources, RTT_MS, step_s).rows(sessions, arms):
            lines.append(line := self.loads.add(names[row.arm], row))
            self.check.step(f"{line[1]}, {line[0]} at once: {line[2]} tokens/s")
        return True, markdown(HEADLINE, lines)

    async def record(self, url: str) -> None:
        """Let stock vLLM answer the prompts, and the draft model draft along its answers."""
        async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=TIMEOUT_S) as http:
            answers = list[tuple[Subject, Text, Text]]()
            for prompt in self.prompts:
                tokens = await tokenized(http, prompt.prompt)
                text = await answered(http, tokens, tokens=self.tokens)
                answers.append((Subject(prompt, prompt.family, 0.0, SEED), tokens, text))
        question = Question("", 0.0, SEED, self.tokens, LIKELIEST)
        self.texts = [await ask(url, "stock", each, 0.0, of=question) for each in self.prompts]
        file = open_store(os.environ).find(self.plan.draft_model, "draft").path
        traces = await asyncio.to_thread(lambda: list(replayed(file, answers)))
        self.sources = [traced(trace) for trace in traces]

    async def table(self) -> Found:
        """Show all loads. Fails if a promise is broken, or if the first was not measured.
        Raises NotRun if it cannot be concluded, because the clients were full."""
        conditions = (
            f"{RTT_MS:g} ms away, draft steps of {1000 * STEP_S:g} ms unless others are named, "
            f"at most {self.tokens} tokens, temperature 0."
        )
        shares = self.loads.shares(self.baselines)
        found = "\n\n".join([conditions, *self.loads.compared(self.baselines)])
        kept = min(shares.values(), default=1.0) >= MIN_RATIO
        measured = any(name == PLUGGED for name, _ in shares)
        if kept and not measured and self.loads.full({PLUGGED: UNPLUGGED}):
            raise NotRun(found)
        return kept and measured, found


NOTHING: Final[Mapping[str, object]] = MappingProxyType({})


async def tokenized(http: httpx.AsyncClient, chat: str) -> tuple[TokenId, ...]:
    """Return the tokens of a prompt, by vLLM's chat template."""
    messages = [{"role": "user", "content": chat}]
    return tuple((await _post(http, "/tokenize", messages=messages))["tokens"])


async def answered(
    http: httpx.AsyncClient, prompt: Text, *, tokens: int,
    settings: Mapping[str, object] = NOTHING,
) -> Text:  # fmt: skip
    """Return vLLM's answer, at temperature 0 unless the settings say otherwise."""
    body = {"prompt": prompt, "max_tokens": tokens, "temperature": 0, "return_token_ids": True}
    choice = (await _post(http, "/v1/completions", **{**body, **settings}))["choices"][0]
    return list[TokenId](choice["token_ids"])


async def _post(http: httpx.AsyncClient, path: str, **body: object) -> dict[str, Any]:
    return dict((await http.post(path, json=body)).raise_for_status().json())
