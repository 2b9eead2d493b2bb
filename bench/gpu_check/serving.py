"""Checks running services: their start, their texts, and `picospec` against `cloud`."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from functools import partial
from statistics import median
from time import perf_counter
from typing import Final

import httpx

from bench.gpu_check.engines import ENGINE_S, FAST, FAST_STEP_S, OF_ARMS, Engines
from bench.gpu_check.loads import MIN_RATIO
from bench.gpu_check.parts import Found
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
from bench.link import Conditions
from bench.run.client import Client, Question, Reply
from bench.run.services import READY_WITHIN_S, EdgePlan, Services, linked
from bench.tables import markdown
from local_models.tokenizer_file import TokenizerFile

LINK: Final = Conditions(rtt_ms=20.0)
"""Speeds are compared over this link between user and GPU host."""

CLIENTS: Final = (1, 8)
"""Speeds are compared with these numbers of answers at once, one load after the other."""

TURNS: Final = 2

PARTS: Final = {
    "start-up": READY_WITHIN_S + 30.0, "identity": 300.0, "cloud against picospec": 300.0,
    "sessions": ENGINE_S,
}  # fmt: skip
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
        works = (self._texts, self._speeds, self._sessions)
        async with AsyncExitStack() as running:
            parts = {
                name: (limit_s, partial(work, services))
                for (name, limit_s), work in zip(others, works, strict=True)
            }
            await check.run_group(start, start_s, partial(_start, running, services), parts)

    async def _texts(self, services: Services) -> Found:
        """Compare the texts of edges with the plain engine's. Near-ties are no defect."""
        async with httpx.AsyncClient(base_url=services.verifier_url, trust_env=False) as http:
            packed = (await http.get("/v1/tokenizer")).raise_for_status().content
        explained = explainer(TokenizerFile.unpack(packed).open().vocabulary)
        batches = batched((0.0, 1.0), self.engines.prompts, max(CLIENTS))
        asking = partial(ask, of=Question("", 0.0, SEED, self.engines.tokens, LIKELIEST))
        urls = services.verifier_url, services.edge_urls
        answers = list[Answer]()
        async for answer in compare(*urls, batches, asking, explained):
            answers.append(answer)
            self.engines.check.step(f"{answer.arm} answered at T={answer.temperature:g}")
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

    async def _sessions(self, services: Services) -> Found:
        """Measure the verifier under load, without sessions, and with those of two devices."""
        url, counts = services.verifier_url, self.engines.sessions
        right, slow = await self.engines.load(url, OF_ARMS, counts)
        fast = await self.engines.load(url, {"picospec": FAST}, counts, FAST_STEP_S)
        return right and fast[0], f"{slow}\n\n{fast[1]}"

    async def _speeds(self, services: Services) -> Found:
        async with linked(services.verifier_url, LINK) as (cloud_url, _):
            urls = {"cloud": cloud_url, "picospec": services.edge_urls["picospec"]}
            return await self.speeds(urls)

    async def speeds(self, urls: Mapping[str, str]) -> Found:
        """Measure both arms alternately at each load, with prompts that were read before."""
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


async def _start(running: AsyncExitStack, services: Services) -> Found:
    """Start the services. Raises ServiceError if one dies or takes too long."""
    began_s = perf_counter()
    await running.enter_async_context(services)
    seconds = perf_counter() - began_s
    return True, f"Verifier (with its self-test) and edges were ready after {seconds:.1f} s."
