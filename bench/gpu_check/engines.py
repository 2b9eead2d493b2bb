"""What vLLM and PicoSpec make of one load: engines run one after another.

Memory seldom holds two. Stock vLLM is first: its greedy answers are what scripted edges draft
for, and what texts are compared with.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Final

import httpx

from picospec.bench.capacity.figures import Row
from picospec.bench.capacity.loading import ARMS, PLAIN, Load
from picospec.bench.data.prompts import Prompt
from picospec.bench.data.tables import markdown
from picospec.bench.gpu_check.parts import Check
from picospec.bench.identity.__main__ import LIKELIEST
from picospec.bench.identity.answers import SEED, TIMEOUT_S, Answer, ask
from picospec.bench.run.rivals import HEAD, Rival
from picospec.bench.run.rivals import PLAIN as STOCK
from picospec.bench.run.services import Services, ServicesPlan
from picospec.bench.simulator.source import Source, traced
from picospec.bench.traces.record import Subject, replayed
from picospec.edge_agent.draft_model.loading import find
from picospec.models.store import open_store
from picospec.speculation.protocol.messages import TokenId

ENGINE_S: Final = 900.0
"""One engine must start and be measured within this time."""

RTT_MS: Final = 20.0
STEP_S: Final = 0.024
"""The scripted edges have this round trip, and their draft model takes as long for a step."""

MIN_RATIO: Final = 0.9
"""Requests without sessions must have this share of the tokens/s that they have without the
plugin."""

MAX_BUSY: Final = 0.9
HEADLINE: Final = (
    "sessions", "engine", "tokens/s", "/ stock", "slowest", "gap p50, p95, ms",
    "stock's text", "clients busy",
)  # fmt: skip
UNPLUGGED: Final = "stock vLLM"
PLUGGED: Final = "with the plugin, no sessions"
ALONE: Final = "PicoSpec"
OF_ARMS: Final = {"cloud": PLUGGED, "picospec": ALONE}


@dataclass(slots=True)
class Engines:
    """The engines of a host, and what was measured of them."""

    plan: ServicesPlan
    prompts: Sequence[Prompt]
    tokens: int
    sessions: Sequence[int]
    head: str = ""
    """vLLM's `speculative_config` of a head, as JSON; "" means that there is none."""

    texts: list[Answer] = field(default_factory=list)
    """Stock vLLM answered the prompts so, at temperature 0."""

    sources: list[Source] = field(default_factory=list)
    measured: dict[tuple[int, str], Row] = field(default_factory=dict)

    @property
    def rivals(self) -> dict[str, Rival]:
        """Stock vLLM's own speculation, by the names in the report."""
        ngram = Rival("cloud-ngram", 4)
        named = {"stock vLLM, n-gram": ngram}
        return named | (
            {"stock vLLM, head": Rival(HEAD, config=self.head)} if self.head else {}
        )

    async def check_stock(self, check: Check) -> None:
        """Measure vLLM without the plugin."""
        stock = Rival(STOCK)
        work = partial(self._engine, UNPLUGGED, replace(self.plan, rival=stock))
        if await check.run(UNPLUGGED, ENGINE_S, work):
            for name, rival in self.rivals.items():
                plan = replace(self.plan, rival=rival)
                await check.run(name, ENGINE_S, partial(self._engine, name, plan))

    async def check_merged(self, check: Check, device: str) -> None:
        """Measure sessions beside vLLM's own speculation, then show all loads together."""
        for stock, rival in self.rivals.items():
            name = stock.replace(f"{UNPLUGGED},", f"{ALONE} merged with")
            if device == "cpu":
                check.skip("Model Runner V1 has sessions in the place of speculation.", name)
                continue
            config = json.dumps(rival.speculation(""))
            more = (*self.plan.verifier_arguments, "--vllm.speculative-config", config)
            plan = replace(self.plan, verifier_arguments=more)
            await check.run(name, ENGINE_S, partial(self._engine, name, plan))
        await check.run("all loads", 9.0, self.table)

    async def _engine(self, name: str, plan: ServicesPlan) -> tuple[bool, str]:
        """Start an engine and load it."""
        async with Services(replace(plan, edges={})) as services:
            if not self.sources:
                await self.record(services.verifier_url)
            if plan.rival:
                return await self.load(services.verifier_url, {"cloud": name})
            return await self.load(services.verifier_url, {"picospec": name})

    async def plugged(self, url: str) -> tuple[bool, str]:
        """Load a running verifier, with and without sessions."""
        return await self.load(url, OF_ARMS)

    async def load(self, url: str, names: dict[str, str]) -> tuple[bool, str]:
        """Measure arms, which the report calls by these names."""
        if not self.sources:
            return False, f"{UNPLUGGED} gave no answers to replay."
        arms = PLAIN if names.keys() == {*PLAIN} else tuple(arm for arm in ARMS if arm in names)
        load, rows = Load(url, self.sources, RTT_MS, STEP_S, None), list[Row]()
        async for row in load.rows(self.sessions, arms):
            self.measured[row.sessions, names[row.arm]] = row
            rows.append(row)
        return True, markdown(HEADLINE, [self._line(row, names[row.arm]) for row in rows])

    async def record(self, url: str) -> None:
        """Have stock vLLM answer, and the draft model draft along its answers."""
        async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=TIMEOUT_S) as http:
            answers = [await _answered(http, prompt, self.tokens) for prompt in self.prompts]
        asking = partial(ask, url, "stock", temperature=0.0, tokens=self.tokens)
        self.texts = [await asking(prompt, likeliest=LIKELIEST) for prompt in self.prompts]
        file = find(self.plan.draft_model, open_store(os.environ))
        traces = await asyncio.to_thread(lambda: list(replayed(file, answers)))
        self.sources = [traced(trace) for trace in traces]

    async def table(self) -> tuple[bool, str]:
        """Show all loads. It fails if the plugin slows down requests without sessions."""
        rows = sorted(self.measured.items(), key=lambda item: item[0][0])
        lines = [self._line(row, name) for (_, name), row in rows]
        ratios = [self._ratio(row) for (_, name), row in rows if name == PLUGGED]
        text = (
            f"{RTT_MS:g} ms away, draft steps of {1000 * STEP_S:g} ms, at most {self.tokens} "
            f"tokens, temperature 0. Requests without sessions: {MIN_RATIO:g} of stock is the "
            f"least. Clients that are busy for {MAX_BUSY:g} of the time are what is measured."
        )
        right = all(ratio is not None and ratio >= MIN_RATIO for ratio in ratios)
        return bool(ratios) and right, f"{text}\n\n{markdown(HEADLINE, lines)}"

    def _ratio(self, row: Row) -> float | None:
        stock = self.measured.get((row.sessions, UNPLUGGED))
        if stock is None:
            return None
        return row.measured.tokens_per_s / stock.measured.tokens_per_s

    def _line(self, row: Row, name: str) -> list[str]:
        own, ratio = row.measured, self._ratio(row)
        return [
            f"{row.sessions}", name, f"{own.tokens_per_s:.1f}", f"{ratio:.2f}" if ratio else "",
            f"{own.slowest_tokens_per_s:.2f}", f"{own.gap_ms_p50:.0f}, {own.gap_ms_p95:.0f}",
            f"{own.scripted_share:.2f}" if row.arm == "picospec" else "",
            f"{row.busy_share:.2f}",
        ]  # fmt: skip


async def _answered(
    http: httpx.AsyncClient, prompt: Prompt, tokens: int
) -> tuple[Subject, Sequence[TokenId], Sequence[TokenId]]:
    messages = [{"role": "user", "content": prompt.prompt}]
    asked = (await _post(http, "/tokenize", messages=messages))["tokens"]
    body = {"prompt": asked, "max_tokens": tokens, "temperature": 0, "return_token_ids": True}
    answer = await _post(http, "/v1/completions", **body)
    subject = Subject(prompt, prompt.family, 0.0, SEED)
    return subject, asked, answer["choices"][0]["token_ids"]


async def _post(http: httpx.AsyncClient, path: str, **body: object) -> dict[str, Any]:
    return dict((await http.post(path, json=body)).raise_for_status().json())
