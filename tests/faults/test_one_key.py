"""No single request and no single key delays /health or another tenant's stream, at either end.

What is compared is an answer beside the attack and one beside nothing. tests/faults/attacks.py
attacks from a process of its own.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
import pytest_asyncio

from gateway.keys import KeyLimits, add_key
from tests.faults import attacks
from tests.faults.rig.bystander import Bystander
from tests.faults.rig.generating import counted, summary
from tests.faults.rig.report import Report
from tests.faults.rig.world import FOLDER, Plan, World

pytestmark = [pytest.mark.faults, pytest.mark.asyncio(loop_scope="module")]

KEYS = FOLDER / "one-key.toml"
SHORT_S, LONG_S, CALM_S = 2.0, 60.0, 3.0

PROMISED_S = 0.5
"""How much longer another tenant may wait, and how long /health may take."""

ATTACKS = [
    *((end, kind) for end in ("edge", "verifier") for kind in attacks.KINDS),
    ("verifier", attacks.DRAFTS),
]


@dataclass(frozen=True, slots=True)
class Attacked:
    world: World
    limited: str
    """A key of one session, 10 requests and 1,000 tokens a minute."""

    free: str
    """A key without limits."""

    calm_s: float
    """The longest gap in an answer beside which nothing happens."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def attacked(is_long: bool) -> AsyncIterator[Attacked]:
    FOLDER.mkdir(parents=True, exist_ok=True)
    KEYS.unlink(missing_ok=True)
    limits = KeyLimits(sessions=1, requests_a_minute=10, tokens_a_minute=1000)
    limited, free = add_key(KEYS, "limited", limits), add_key(KEYS, "free", KeyLimits())
    other, edge = add_key(KEYS, "other", KeyLimits()), add_key(KEYS, "edge", KeyLimits())
    plan = Plan(
        verifiers=1,
        slots=8,
        folder=FOLDER / "one-key",
        verifier_options=("--keys-file", str(KEYS)),
        edge_environment={
            "PICOSPEC_EDGE__KEYS_FILE": str(KEYS),
            "PICOSPEC_VERIFIER_KEY": edge,
        },
    )
    async with World(plan) as world:
        world.http.headers["authorization"] = f"Bearer {other}"
        bystander = Bystander(world)
        async with bystander.beside():
            began = time.monotonic()
            await asyncio.sleep(CALM_S)
            calm_s = max(bystander.gaps_s(began))
        yield Attacked(world, limited, free, calm_s)


@pytest.mark.parametrize(("end", "kind"), ATTACKS)
async def test_one_key_delays_nobody_else(
    attacked: Attacked, end: str, kind: str, is_long: bool, report: Report
) -> None:
    world, seconds = attacked.world, LONG_S if is_long else SHORT_S
    port = world.edge.port if end == "edge" else world.verifiers[0].port
    key = attacked.free if kind == attacks.GRAMMARS else attacked.limited
    bystander = Bystander(world)
    async with bystander.beside(asks_health=True):
        began = time.monotonic()
        tally = await counted(
            "tests.faults.attacks", kind, "--port", str(port), "--key", key,
            "--seconds", str(seconds),
        )  # fmt: skip
        gap_s, health_s = max(bystander.gaps_s(began)), max(bystander.health_s)

    note = f"undisturbed {attacked.calm_s:.2f} s; /health {health_s:.2f} s; {summary(tally)}"
    report.add(f"{end}: {kind}", "others answered", gap_s, note=note)
    if is_long:
        assert gap_s <= attacked.calm_s + PROMISED_S
        assert health_s <= PROMISED_S
    assert set(bystander.health) == {"200"}
    assert all(answer.error is None for answer in bystander.answers)
    assert not {status for status in tally if status.startswith("5")}
