"""The link, with real sockets on loopback: its delays, its order and its faults."""

from __future__ import annotations

import asyncio
import socket
import statistics
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.link import Conditions, EmulatedLink, Path
from tests.guards import GUARD_S

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    except ConnectionError:
        pass
    finally:
        writer.close()


@asynccontextmanager
async def serving(handler: Handler = echo) -> AsyncIterator[tuple[str, int]]:
    server = await asyncio.start_server(handler, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[:2]


@asynccontextmanager
async def talking_to(
    port: int,
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield reader, writer
    finally:
        writer.close()


@asynccontextmanager
async def through_a_link(
    handler: Handler = echo, *, seed: int = 0, max_bytes: int = 1 << 20, **conditions: float
) -> AsyncIterator[tuple[EmulatedLink, asyncio.StreamReader, asyncio.StreamWriter]]:
    """Give a link, and a connection through it to a server."""
    async with (
        serving(handler) as upstream,
        EmulatedLink(
            upstream, Conditions(**conditions), seed=seed, max_in_flight_bytes=max_bytes
        ) as link,
        talking_to(link.port) as (reader, writer),
    ):
        yield link, reader, writer


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(GUARD_S):
        while not condition():  # noqa: ASYNC110 - sockets of this machine
            await asyncio.sleep(0.001)


async def round_trip_ms(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> float:
    loop = asyncio.get_running_loop()
    start_s = loop.time()
    writer.write(b"ping")
    await reader.readexactly(4)
    return (loop.time() - start_s) * 1000


@pytest.mark.long
@pytest.mark.parametrize("rtt_ms", [0, 10, 50])
async def test_an_echo_takes_the_round_trip_it_was_set_to(rtt_ms: float) -> None:
    async with through_a_link(rtt_ms=rtt_ms) as (_, reader, writer):
        await round_trip_ms(reader, writer)
        measured_ms = [await round_trip_ms(reader, writer) for _ in range(15)]

    assert abs(statistics.median(measured_ms) - rtt_ms) <= max(5, rtt_ms / 4)


@pytest.mark.parametrize("seed", range(4))
async def test_bytes_keep_their_order_under_jitter_and_loss_whatever_their_pieces(
    seed: int,
) -> None:
    chance = Random(seed)
    sent = chance.randbytes(60_000)
    async with through_a_link(seed=seed, rtt_ms=8, jitter_ms=8, loss=0.01) as ends:
        (link, reader, writer), rest = ends, sent
        while rest:
            size = chance.randint(1, 6000)
            writer.write(rest[:size])
            rest = rest[size:]
            await asyncio.sleep(chance.random() / 500)
        writer.write_eof()
        received = await reader.read(-1)

    assert received == sent
    assert link.up.bytes == link.down.bytes == len(sent)


async def test_a_reader_that_stops_stops_its_sender() -> None:
    stalled = asyncio.Event()

    async def ignore(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await stalled.wait()
        writer.close()

    async with through_a_link(ignore, max_bytes=65_536) as (link, _, writer):
        writer.write(bytes(64 << 20))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(writer.drain(), 0.3)
        carried, before = link.up.bytes, -1
        while carried != before:  # until nothing more is taken in
            await asyncio.sleep(0.2)
            before, carried = carried, link.up.bytes
        stalled.set()
        writer.transport.abort()

    assert carried < 32 << 20


async def test_a_half_close_lets_the_other_direction_go_on() -> None:
    async def answer_at_the_end(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        question = await reader.read(-1)
        writer.write(question.upper())
        writer.close()

    async with through_a_link(answer_at_the_end, rtt_ms=10) as (link, reader, writer):
        writer.write(b"question")
        writer.write_eof()
        answer = await reader.read(-1)
        await until(lambda: not link.connections)

    assert answer == b"QUESTION"


async def test_a_server_that_resets_resets_the_client() -> None:
    async def slam(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        at_once = struct.pack("ii", 1, 0)  # so that the kernel sends a reset
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, at_once)
        writer.transport.abort()

    async with through_a_link(slam) as (_, reader, writer):
        writer.write(bytes(300_000))
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(reader.read(-1), GUARD_S)


async def test_leaving_the_link_leaves_no_task_behind() -> None:
    async with through_a_link(rtt_ms=500):
        await asyncio.sleep(0)

    await until(lambda: len(asyncio.all_tasks()) == 1)


# A path decides when bytes arrive; it needs a clock reading and a seeded chance.


def test_bytes_leave_the_line_one_after_the_other_at_its_rate() -> None:
    path = Path(Conditions(rate_mbit=8), Random(1))  # one byte each microsecond

    arrivals = [path.arrival(1.0, 1000) for _ in range(3)]

    assert arrivals == pytest.approx([1.001, 1.002, 1.003])


def test_an_idle_line_saves_up_no_credit() -> None:
    path = Path(Conditions(rate_mbit=8), Random(1))
    path.arrival(0.0, 1000)

    assert path.arrival(9.0, 1000) == pytest.approx(9.001)


@given(jitter_ms=st.floats(0, 50), seed=st.integers(0, 1000))
def test_jitter_stays_within_half_its_setting_each_way(jitter_ms: float, seed: int) -> None:
    path = Path(Conditions(rtt_ms=100, jitter_ms=jitter_ms), Random(seed))

    travel_ms = [path.arrival(0.0, 1) * 1000 for _ in range(20)]

    assert all(abs(ms - 50) <= jitter_ms / 2 + 1e-9 for ms in travel_ms)


@pytest.mark.parametrize(("rtt_ms", "late_ms"), [(20, 200), (300, 300)])
def test_a_lost_segment_comes_one_retransmission_timeout_later(
    rtt_ms: float, late_ms: float
) -> None:
    path = Path(Conditions(rtt_ms=rtt_ms, loss=0.25), Random(1))

    travel_ms = [round(path.arrival(0.0, 1) * 1000, 6) for _ in range(4000)]

    assert set(travel_ms) == {rtt_ms / 2, rtt_ms / 2 + late_ms}
    assert travel_ms.count(rtt_ms / 2 + late_ms) == pytest.approx(1000, abs=120)


def test_the_same_seed_gives_the_same_link() -> None:
    conditions = Conditions(rtt_ms=100, jitter_ms=30, loss=0.1)

    first, second = (Path(conditions, Random("7 up")) for _ in range(2))

    assert [first.arrival(i, 9) for i in range(50)] == [second.arrival(i, 9) for i in range(50)]


@pytest.mark.parametrize(
    ("field", "conditions"),
    [
        ("rtt_ms", {"rtt_ms": -1}),
        ("jitter_ms", {"rtt_ms": 10, "jitter_ms": 11}),
        ("rate_mbit", {"rate_mbit": 0}),
        ("loss", {"loss": 1}),
    ],
)
def test_an_impossible_setting_is_refused_by_name(
    field: str, conditions: dict[str, float]
) -> None:
    with pytest.raises(ValueError, match=field):
        Conditions(**conditions)
