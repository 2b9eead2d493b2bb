"""What the routes answer an edge: each bad input gets its defined error, ends no more than its
own session, and shows nothing of other tenants."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import msgspec
import pytest
from msgspec import Raw, structs
from structlog.testing import capture_logs

from speculation import wire
from speculation.answer_cache import SHARED
from speculation.messages import (
    MAX_PREDICTED,
    Commit,
    Draft,
    Fault,
    Finish,
    Message,
    Open,
    Opened,
    Pushed,
    Sampling,
)
from speculation.model_facts import MAX_VOCABULARY
from tests.golden import Json, Line, grown, lines_of
from tests.verifier.conftest import metrics
from tests.verifier.down import push, text_of
from tests.verifier.fake_app import (
    ANN,
    BEN,
    OPEN,
    app_of,
    client_of,
    counted,
    messages,
    opened,
    write_keys,
)
from tests.verifier.fake_target import FACTS, STALLS, FakeTarget, V, opening, said
from verifier.owners import Owners
from verifier.routes import DRAFTS_BYTES, open_bytes

OPENS = [*lines_of(Path(__file__).with_name("opens.jsonl"))]
"""Each has what differs from an Open that is served, and how it is refused."""

GARBAGE = {
    "nothing": b"",
    "a frame cut short": OPEN[:-3],
    "text": b"GET / HTTP/1.1\r\n\r\n" * 4,
    "an unknown type": b"\x01\x63",
    "another message": wire.encode(Draft(0, 0, 0, (1,))),
    "two messages": OPEN * 2,
}
BAD_DRAFTS = {
    "no token of the target": (wire.encode(Draft(0, 0, 0, (V,))), "Draft.tokens"),
    "a gap to the text": (wire.encode(Draft(0, 5, 0, (1,))), "Draft.offset"),
    "weights in coupled": (wire.encode(Draft(0, 0, 0, (1,), q=(5,))), "Draft.q"),
    "truncated": (wire.encode(Draft(0, 0, 0, (1, 2)))[:-1], ""),
    "garbage": (b"\xff" * 20, ""),
    "an unknown type": (b"\x05\x63abcd", ""),
    "an Open": (OPEN, "Open: not in this direction"),
    "nothing": (b"", "a request without a message"),
}
"""The error says this of a body. Which drafts are dishonest, the session's own tests say."""

TEXT = [said(opening().prompt, at) for at in range(8)]


@asynccontextmanager
async def ann_at_an_app(
    folder: Path, limits: str = "", target: FakeTarget | None = None
) -> AsyncIterator[httpx.AsyncClient]:
    """Give ann's client of a verifier's app; her key has these limits."""
    file = write_keys(folder, "ann", more=limits)
    async with app_of(file, target or FakeTarget()) as app, client_of(app, ANN) as client:
        yield client


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    async with ann_at_an_app(tmp_path) as client:
        yield client


async def open_with(client: httpx.AsyncClient, content: bytes) -> httpx.Response:
    return await client.post("/v1/speculate", content=content)


def error_of(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


def open_of(fields: Json) -> Open:
    given = {n: tuple(v) if isinstance(v, list) else v for n, v in grown(fields).items()}
    return opening(**given | {"sampling": Sampling(**given.get("sampling", {}))})


async def test_a_session_streams_its_text_and_is_counted(client: httpx.AsyncClient) -> None:
    answer = await open_with(client, OPEN)
    found = await metrics(client)

    _, *sent, last = messages([answer.content])
    assert answer.headers["content-type"] == "application/vnd.picospec"
    assert text_of(sent) == TEXT
    assert isinstance(last, Finish)
    assert last.reason == "length"
    assert found['picospec:prompt_tokens_total{model_name="fake"}'] == 3
    assert found['picospec:generation_tokens_total{model_name="fake"}'] == 8
    assert found["picospec:sessions_open"] == 0


async def test_drafts_are_judged_and_are_no_requests_of_their_own(tmp_path: Path) -> None:
    request = opening(fill="never")
    three, more = Draft(0, 0, 0, tuple(TEXT[:3])), Draft(0, 4, 0, tuple(TEXT[4:7]))
    async with opened(tmp_path, FakeTarget(), 1, request) as (_, ann, (session,), (answer,)):
        answers = [await push(ann, session, three) for _ in range(5)]
        await asyncio.sleep(1.0)
        answers.append(await push(ann, session, more))
        _, first, second, finish = messages([await answer])
        late = [await push(ann, each, three) for each in (session, "nobody")]
        found = await metrics(ann)

    assert isinstance(first, Commit)
    assert first.accepted == 3
    assert text_of([first, second]) == TEXT
    assert isinstance(finish, Finish)
    assert [answer.status_code for answer in answers] == [204] * 6
    assert [*map(error_of, late)] == [(404, "unknown_session")] * 2
    assert not any('requests_total{route="other"' in name for name in found)
    assert found['picospec:failed_draft_messages_total{status="404"}'] == 2


async def test_a_message_is_passed_on_as_it_came_or_is_encoded_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded, encode = list[Message](), wire.encode

    def counting(message: Message) -> bytes:
        encoded.append(message)
        return encode(message)

    target, request = FakeTarget(), opening(fill="never")
    body = b"".join(encode(Draft(0, at, at, (TEXT[at],))) for at in range(7))
    async with opened(tmp_path, target, 1, request) as (_, ann, (session,), (answer,)):
        monkeypatch.setattr(wire, "encode", counting)
        await ann.post(f"/v1/speculate/{session}/drafts", content=body)
        _, *sent = messages([await answer])

    assert b"".join(framed.frame for framed in target.pushed) == body
    assert not [message for message in encoded if isinstance(message, Pushed)]
    assert encoded == sent


async def test_ready_says_how_busy_the_verifier_is(tmp_path: Path) -> None:
    stalls = opening(prompt=(STALLS,))
    async with opened(tmp_path, FakeTarget(), 1, stalls) as (_, ann, _, _):
        ready, health = [(await ann.get(path)).json() for path in ("/ready", "/health")]

    assert ready == {"status": "ok", "model": "fake", "load": round(1 / 64, 3)}
    assert health == {"status": "ok", "state": "ready"}


async def test_while_the_target_loads_the_verifier_is_healthy_and_not_ready(
    tmp_path: Path,
) -> None:
    async with ann_at_an_app(tmp_path, target=FakeTarget(starts=False)) as client:
        health = await client.get("/health")
        answers = [await client.get(path) for path in ("/ready", "/v1/model-facts")]
        answers.append(await open_with(client, OPEN))

    assert (health.status_code, health.json()) == (200, {"status": "ok", "state": "loading"})
    assert [*map(error_of, answers)] == [(503, "loading")] * 3


async def test_a_key_makes_the_verifier_forget_its_answers_or_those_of_one_of_its_users(
    tmp_path: Path,
) -> None:
    target, path = FakeTarget(), "/v1/picospec/pool"
    async with (
        app_of(write_keys(tmp_path, "ann", "ben"), target) as app,
        client_of(app, ANN) as ann,
        client_of(app, BEN) as ben,
    ):
        for client, query in ((ann, ""), (ann, "?cache_salt=alice"), (ben, "")):
            assert (await client.delete(path + query)).status_code == 204

    own, alices, bens = target.forgotten
    salt = {"cache_salt": msgspec.Raw(b'"alice"')}
    asked = opening(sampling=Sampling(extras=salt), ngram_drafts=True)
    assert alices == target.owners.of_answers(own.tenant, asked)
    assert (own.user, bens.user) == ("", "")
    assert own != bens


async def test_where_prefixes_are_shared_so_are_answers_but_none_of_nobody() -> None:
    target = FakeTarget()
    assert target.owners.of_answers(None, opening()) is None

    target.owners = Owners(share_prefixes=True)

    assert target.owners.of_answers("edge", opening()) == SHARED


# Bad input.


@pytest.mark.parametrize("line", OPENS, ids=lambda line: json.dumps(line.given["open"]))
async def test_an_open_that_cannot_be_served_is_refused_by_its_field(
    client: httpx.AsyncClient, line: Line, request: pytest.FixtureRequest
) -> None:
    answer = await open_with(client, wire.encode(open_of(line.given["open"])))

    error = answer.json()["error"]
    found = {"status": answer.status_code, "field": error["param"], "code": error["code"]}
    line.check(found, request, found)


@pytest.mark.parametrize("content", GARBAGE.values(), ids=GARBAGE)
async def test_what_is_no_open_is_malformed(client: httpx.AsyncClient, content: bytes) -> None:
    assert error_of(await open_with(client, content)) == (400, "malformed_frame")


@pytest.mark.parametrize("context_tokens", [64, 200_000, 1_000_000])
def test_an_open_may_have_a_text_that_fills_the_context(context_tokens: int) -> None:
    facts = structs.replace(FACTS, context_tokens=context_tokens)
    text = (MAX_VOCABULARY - 1,) * (context_tokens // 2)
    asked = opening(
        prompt=text, committed=text, predicted=text[:MAX_PREDICTED], max_tokens=1,
        sampling=Sampling(extras={"structured_outputs": Raw(b'"%b"' % (b"x" * (1 << 18)))}),
    )  # fmt: skip

    assert len(wire.encode(asked)) <= open_bytes(facts)


@pytest.mark.parametrize("name", BAD_DRAFTS)
async def test_what_is_no_draft_of_an_honest_edge_ends_its_session_alone(
    tmp_path: Path, name: str
) -> None:
    content, reason = BAD_DRAFTS[name]
    async with opened(tmp_path, FakeTarget()) as (_, ann, names, answers):
        answer = await ann.post(f"/v1/speculate/{names[0]}/drafts", content=content)
        *_, fault = messages([await answers[0]])
        faults = await counted(ann, 'session_faults_total{code="protocol_error"}')
        assert not answers[1].done()

    assert error_of(answer) == (400, "protocol_error")
    assert reason in answer.json()["error"]["message"]
    assert isinstance(fault, Fault)
    assert fault.code == "protocol_error"
    assert faults == 1


async def test_what_is_over_its_limit_is_too_large_and_harms_nothing(tmp_path: Path) -> None:
    async with opened(tmp_path, FakeTarget(), 1) as (_, ann, (session,), (answer,)):
        too_large = {
            "/v1/speculate": open_bytes(FACTS),
            f"/v1/speculate/{session}/drafts": DRAFTS_BYTES,
        }
        answers = [
            await ann.post(path, content=b"\0" * (limit + 1))
            for path, limit in too_large.items()
        ]
        assert not answer.done()

    assert [*map(error_of, answers)] == [(413, "request_too_large")] * 2


# A session belongs to the key that opened it, and its work counts against that key's limits.


async def test_another_keys_session_is_answered_as_one_that_does_not_exist(
    tmp_path: Path,
) -> None:
    async with (
        opened(tmp_path, FakeTarget(), 1) as (app, _, (session,), _),
        client_of(app, BEN) as ben,
    ):
        answers = [await push(ben, name) for name in (session, "x" * 16)]

    theirs, unknown = (
        answer.text.replace(session, "NAME").replace("x" * 16, "NAME") for answer in answers
    )
    assert theirs == unknown
    assert [answer.status_code for answer in answers] == [404] * 2


def session_of(answer: httpx.Response) -> str:
    first = next(wire.Decoder().feed(answer.content))
    assert isinstance(first, Opened)
    return first.session


async def test_a_tenant_at_its_limit_opens_no_session_and_the_drafts_of_those_open_are_free(
    tmp_path: Path,
) -> None:
    async with ann_at_an_app(tmp_path, "requests_a_minute = 2") as client:
        opens = [await open_with(client, OPEN) for _ in range(3)]
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
        opens = [await open_with(client, again) for _ in range(2)]

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
            after = await open_with(client, OPEN)

    assert {answer.status_code for answer in strays} == {404}
    assert after.status_code == 429
    assert [line["event"] for line in logs] == ["request"] * 6 + ["rate_limited"]


async def test_no_sessions_name_is_in_the_log(tmp_path: Path) -> None:
    class Broken(FakeTarget):
        async def _step(self, running: object) -> None:
            raise RuntimeError("a bug")

    wrong = {"authorization": "Bearer wrong"}
    async with ann_at_an_app(tmp_path, target=Broken()) as client:
        with capture_logs() as logs:
            name = session_of(await open_with(client, OPEN))
            await push(client, name, Draft(0, 0, 0, (1,)))
            await client.get(f"/v1/speculate/{name}?from=0")
            await client.delete(f"/v1/speculate/{name}")
            await client.post(f"/v1/speculate/{name}/drafts", headers=wrong)

    paths = [line["path"] for line in logs if line["event"] == "request"]
    assert paths[1:] == [*["/v1/speculate/*"] * 2, "/v1/speculate/*/drafts"]
    assert "session failed" in [line["event"] for line in logs]
    assert name not in str(logs)
