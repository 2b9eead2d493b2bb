"""Made-up answers, for tests of what is computed from them."""

from __future__ import annotations

import msgspec
import numpy as np

from bench.host import Host
from bench.link import Conditions
from bench.prompts import sampling
from bench.results import Answer, Results, Settings, rows
from bench.simulator.edge import Answer as SimulatedAnswer
from bench.simulator.hosts import Hosts, World, gpu
from bench.simulator.source import Source, dense
from bench.simulator.world import Arm, simulate
from bench.traces import Trace
from speculation.distributions import distribution
from speculation.model_facts import Limits
from speculation.noise import noise_index

ANSWER = Answer(
    "cloud", "code", "p", 0, 10.0, None, 0.0, "same", tokens=10, first_share=0.0, seconds=1.0,
    ttft_ms=50.0, gaps_ms=[10.0, 20.0, 30.0], drafted=8, accepted=5, target_passes=5,
    bytes_up=60, bytes_down=40, edge_cpu_s=0.1,
    stolen_s=0.003, draft_model_tokens=9,
)  # fmt: skip
"""It has ten tokens, in five passes."""


def answer(arm: str, seconds: float, **fields: object) -> Answer:
    """Return an answer that is as ANSWER, but for these fields."""
    return msgspec.structs.replace(ANSWER, arm=arm, seconds=seconds, **fields)


V = 16


def trace(temperature: float = 1.0, family: str = "code", n: int = 24) -> Trace:
    """A target sampled with the shared noise, and a draft model of the same distribution."""
    chance = np.random.default_rng(3)
    logits = -np.sort(-chance.normal(size=(n, V)).astype(np.float32), axis=1) * 2
    tokens = chance.permuted(np.tile(np.arange(V, dtype=np.int32), (n, 1)), axis=1)
    sampled = [
        distribution(dense(*row), sampling(temperature)).picked(7, noise_index(3, i))
        for i, row in enumerate(zip(tokens, logits, strict=True))
    ]
    answer = np.array(sampled, np.int32)
    return Trace(
        family, f"{family}/1", temperature, 7, np.arange(3, dtype=np.int32), answer, tokens,
        logits, np.full((n, 1), -1, np.int32), np.zeros((n, 1), np.float32),
    )  # fmt: skip


def results(*answers: Answer) -> Results:
    host = Host("a processor", 2, 8.0, "Linux", "3.11", 0.0)
    models = {"target": "big", "draft": "small"}
    settings: Settings = {"tokens": 10, "repeats": 1}
    return Results(host, "abc123", models, settings, rows(answers), list(answers))


# A simulated answer, alone on a host where a draft step takes a tenth of a pass.

DRAFT_S, PASS_S = 0.01, 0.1
GPU = gpu(PASS_S, DRAFT_S)


def run(
    arm: Arm,
    source: Source,
    *,
    rtt_ms: float = 0.0,
    hosts: Hosts = GPU,
    limits: Limits = Limits(),  # noqa: B008 - frozen
    **link: float,
) -> SimulatedAnswer:
    world = World(hosts, Conditions(rtt_ms=rtt_ms, **link), limits)
    (answer,) = simulate(world, arm, [[source]])
    return answer


def rounded(seconds: float) -> float:
    return round(seconds, 9)


def whole_gaps_s(answer: SimulatedAnswer) -> set[float]:
    """The gaps without those at the ends."""
    return {rounded(gap_ms / 1000) for gap_ms in answer.gaps_ms[2:-20]}
