"""A session belongs to the key that opened it, counts among its answers, and ends one day."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from gateway.errors import RateLimited
from gateway.keys import KeyLimits
from gateway.tenant_limits import Tenant, TenantMetrics
from speculation import wire
from speculation.messages import Draft, Fault, Finish, Open, Opened
from tests.verifier.conftest import fake_verifier, http2_client
from tests.verifier.down import opened, push, text_of
from tests.verifier.fake_app import ANN, BEN, OPEN, app_of, client_of, write_keys
from tests.verifier.fake_sessions import rest, running, tenant
from tests.verifier.fake_target import SLOW, STALLS, FakeTarget, opening, said
from verifier.target import UnknownSession


def session_of(answer: httpx.Response) -> str:
    first = next(wire.Decoder().feed(answer.content))
    assert isinstance(first, Opened)
    return first.session


@asynccontextmanager
async def ann_at_an_app(
    folder: Path, limits: str = "", target: FakeTarget | None = None
) -> AsyncIterator[httpx.AsyncClient]:
    """Give ann's client of a verifier's app; her key has these limits."""
    file = write_keys(folder, "ann", more=limits)
    async with app_of(file, target or FakeTarget()) as app, client_of(app, ANN) as client:
        yield client


@pytest.mark.system
async def test_another_keys_session_is_answered_as_one_that_does_not_exist(server: str) -> None:
    request = opening(prompt=(SLOW,), max_tokens=6, fill="auto")
    async with (
        http2_client(server) as mine,
        http2_client(server, "other") as theirs,
        opened(mine, request) as stream,
    ):
        session = await stream.opened()
        cross_vocabulary = await attempt(theirs, session)
        unknown = await attempt(theirs, "x" * 16)
        own = await push(mine, session, Draft(0, 0, 0, (said((SLOW,), 0),)))
        text = text_of(await stream.rest())

    def without_name(answer: httpx.Response) -> str:
        return answer.text.replace(session, "NAME").replace("x" * 16, "NAME")

    assert cross_vocabulary.status_code == 404
    assert without_name(cross_vocabulary) == without_name(unknown)
    assert own.status_code == 204
    assert text == [said((SLOW,), i) for i in range(6)]


async def attempt(client: httpx.AsyncClient, session: str) -> httpx.Response:
    return await client.post(f"/v1/speculate/{session}/drafts")


async def test_only_its_own_tenant_finds_and_replaces_a_session() -> None:
    ann, ben = tenant(), tenant()
    async with running() as (sessions, _, _m):
        session = await sessions.open(opening(prompt=(STALLS,)), ann)

        with pytest.raises(UnknownSession, match="there is no session"):
            sessions.find(session.name, ben)
        await sessions.open(opening(prompt=(STALLS,), replaces=session.name), ben)
        assert sessions.find(session.name, ann) is session
        assert session.ending is None


async def test_a_session_counts_among_its_tenants_answers_until_it_ends() -> None:
    ann, ben = tenant(sessions=2), tenant(sessions=2)
    async with running() as (sessions, _, _m):
        first = await sessions.open(opening(prompt=(STALLS,)), ann)
        ann.begin(0.0)  # a plain answer

        with pytest.raises(RateLimited, match="2 answers at once"):
            await sessions.open(opening(), ann)
        await sessions.open(opening(prompt=(STALLS,)), ben)
        first.cancel(Fault("cancelled", ""))
        await rest(first)
        await asyncio.sleep(0)
        await rest(await sessions.open(opening(), ann))


async def test_a_session_over_a_limit_is_no_work_that_a_drain_waits_for() -> None:
    ann = tenant(sessions=1)
    async with running() as (sessions, _, _m):
        ann.begin(0.0)  # a plain answer
        with pytest.raises(RateLimited):
            await sessions.open(opening(), ann)

        drain = sessions._host.drain
        drain.begin(60)

        assert drain.over.is_set()


async def test_the_tokens_of_a_session_are_its_tenants_and_those_it_began_with_are_not() -> (
    None
):
    registry = CollectorRegistry()
    ann = Tenant("ann", KeyLimits(), TenantMetrics(registry))
    known = tuple(said((4, 5, 6), i) for i in range(3))
    async with running() as (sessions, _, _m):
        session = await sessions.open(opening(committed=known), ann)
        last = (await rest(session))[-1]
        await asyncio.sleep(0)

    assert isinstance(last, Finish)
    assert registry.get_sample_value("picospec:tenant_tokens_total", {"tenant": "ann"}) == 5


async def test_a_session_that_is_too_old_ends_while_it_generates() -> None:
    async with running(max_age_s=0.25) as (sessions, _, _m):
        session = await sessions.open(opening(prompt=(SLOW,), max_tokens=200), tenant())
        *messages, fault = await rest(session)

    assert fault == Fault("max_age", "an answer may take at most 0.25 s", retryable=False)
    assert text_of(messages)


@pytest.mark.system
async def test_a_key_taken_away_ends_with_its_next_request_and_its_stream_goes_on(
    tmp_path: Path,
) -> None:
    file = write_keys(tmp_path, "ann", "ben")
    with fake_verifier(keys_file=str(file)) as (_, url):
        async with (
            http2_client(url, ANN) as ann,
            http2_client(url, BEN) as ben,
            opened(ann, opening(prompt=(SLOW,), max_tokens=30)) as stream,
        ):
            session = await stream.opened()
            write_keys(tmp_path, "ben")
            await asyncio.sleep(1.05)  # KeysFile looks once a second
            gone = [await attempt(ann, session)]
            gone.append(await ann.post("/v1/speculate", content=wire.encode(opening())))
            other = await ben.get("/v1/models")
            text = text_of(await stream.rest())

    assert [answer.status_code for answer in (*gone, other)] == [401] * 2 + [200]
    assert len(text) == 30


async def test_a_tenant_at_its_limit_opens_no_session_and_the_drafts_of_those_open_are_free(
    tmp_path: Path,
) -> None:
    async with ann_at_an_app(tmp_path, "requests_a_minute = 2") as client:
        opens = [await client.post("/v1/speculate", content=OPEN) for _ in range(3)]
        name = session_of(opens[0])
        drafts = [await push(client, name, Draft(0, 0, 0, (1,))) for _ in range(5)]

    assert [answer.status_code for answer in opens] == [200, 200, 429]
    assert opens[2].json()["error"]["code"] == "rate_limit_exceeded"
    assert [answer.status_code for answer in drafts] == [404] * 5


async def test_what_a_session_began_with_counts_against_the_limit_and_is_no_reason_to_refuse_it(
    tmp_path: Path,
) -> None:
    known = tuple(said((4, 5, 6), i) for i in range(100))
    again = wire.encode(opening(committed=known, max_tokens=101))
    async with ann_at_an_app(tmp_path, "tokens_a_minute = 60") as client:
        opens = [await client.post("/v1/speculate", content=again) for _ in range(2)]

    assert [answer.status_code for answer in opens] == [200, 429]
    assert "60 tokens a minute" in opens[1].json()["error"]["message"]


async def test_a_flood_of_requests_for_no_session_uses_up_the_limit_and_is_one_line_of_the_log(
    tmp_path: Path,
) -> None:
    async with ann_at_an_app(tmp_path, "requests_a_minute = 9") as client:
        with capture_logs() as logs:
            strays = [
                await client.request(verb, f"/v1/speculate/{path}")
                for _ in range(20)
                for verb, path in [("GET", "x"), ("POST", "x/drafts"), ("DELETE", "x/y")]
            ]
            after = await client.post("/v1/speculate", content=OPEN)

    assert {answer.status_code for answer in strays} == {404}
    assert after.status_code == 429
    assert [line["event"] for line in logs] == ["request"] * 6 + ["rate_limited"]


async def test_a_tenant_has_one_answer_at_a_time_checked_and_none_when_the_check_fails() -> (
    None
):
    checking = asyncio.Event()

    class Checking(FakeTarget):
        async def check(self, request: Open, tenant: str | None = None) -> None:
            checking.set()
            await asyncio.Event().wait()

    ann = tenant(sessions=1)
    async with running(Checking()) as (sessions, _, _m), asyncio.timeout(5):
        first = asyncio.create_task(sessions.open(opening(), ann))
        await checking.wait()
        with pytest.raises(RateLimited, match="1 answers at once"):
            await sessions.open(opening(), ann)
        first.cancel()
        await asyncio.wait([first])

        ann.check_room(0.0)


async def test_no_sessions_name_is_in_the_log(tmp_path: Path) -> None:
    class Broken(FakeTarget):
        async def _step(self, running: object) -> None:
            raise RuntimeError("a bug")

    wrong = {"authorization": "Bearer wrong"}
    async with ann_at_an_app(tmp_path, target=Broken()) as client:
        with capture_logs() as logs:
            name = session_of(await client.post("/v1/speculate", content=OPEN))
            await push(client, name, Draft(0, 0, 0, (1,)))
            await client.get(f"/v1/speculate/{name}?from=0")
            await client.delete(f"/v1/speculate/{name}")
            await client.post(f"/v1/speculate/{name}/drafts", headers=wrong)

    paths = [line["path"] for line in logs if line["event"] == "request"]
    assert paths[1:] == [*["/v1/speculate/*"] * 2, "/v1/speculate/*/drafts"]
    assert "session failed" in [line["event"] for line in logs]
    assert name not in str(logs)
