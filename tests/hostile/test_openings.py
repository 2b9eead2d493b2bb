"""The largest Opens of one tenant do not hold up those of another one."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from picospec.gateway.errors import InvalidRequest
from picospec.speculation.protocol import wire
from picospec.verifier.admission import check
from tests.verifier.fake_target import FACTS, FakeTarget, opening
from tests.verifier.test_tenants import ANN, BEN, OPEN, app_of, client_of, keys_toml

LARGE = opening(prompt=(1,) * 300_000)
MANY = 24


async def test_an_open_is_decoded_in_turn_however_many_another_tenant_sends(
    tmp_path: Path,
) -> None:
    file, body = tmp_path / "keys.toml", wire.encode(LARGE)
    file.write_text(keys_toml("ann", "ben"))
    async with (
        app_of(file, FakeTarget()) as app,
        client_of(app, ANN) as ann,
        client_of(app, BEN) as ben,
    ):
        many = [
            asyncio.create_task(ann.post("/v1/speculate", content=body)) for _ in range(MANY)
        ]
        await asyncio.wait(many, return_when=asyncio.FIRST_COMPLETED)
        answer = await ben.post("/v1/speculate", content=OPEN)
        waiting = sum(not task.done() for task in many)
        refused = await asyncio.gather(*many)

    assert answer.status_code == 200
    assert waiting > MANY // 2
    assert {each.status_code for each in refused} == {400}


def test_the_length_of_a_prompt_is_checked_before_its_tokens_are() -> None:
    with pytest.raises(InvalidRequest, match="the context has"):
        check(opening(prompt=(FACTS.vocabulary_size,) * 300_000), FACTS)
