"""What a session's core sends reaches its reader once and in order, however slow that is."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm.v1.engine.async_llm")  # its warnings are not ours

from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.output_processor import RequestOutputCollector

from picospec.speculation.messages import RemoteProtocolError
from picospec.verifier.vllm_target.crossing import FIELD
from picospec.verifier.vllm_target.serving.engine import Engine

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("default")]
ASKED = {"max_tokens": 9, "structured_outputs": None}


def output(session: str, *frames: bytes, error: str | None = None) -> Any:
    carried = {FIELD: [session, [(frame, 0, 0) for frame in frames], error], "theirs": 1}
    return SimpleNamespace(kv_transfer_params=carried, request_id=session, finished=False)


class Llm(SimpleNamespace):
    """An engine whose reader sees one output for each batch of the core's."""

    def __init__(self, *batches: list[Any]) -> None:
        self._batches = batches
        stock = SimpleNamespace(process_outputs=lambda outputs: len(outputs), request_states={})
        core = SimpleNamespace(core_engines=[b"0"], client_count=1, client_index=0)
        super().__init__(output_processor=stock, engine_core=core)

    async def generate(self, *args: object, **kwargs: object) -> AsyncGenerator[object]:
        for batch in self._batches:
            assert self.output_processor.process_outputs(batch) == len(batch)
            yield SimpleNamespace(num_cached_tokens=0)


async def read(llm: Any, session: str = "s") -> list[bytes]:
    return [each.frame async for each in Engine(llm).generate(session, (1,), ASKED)]


async def test_outputs_that_vllm_merges_lose_no_frame() -> None:
    others = SimpleNamespace(kv_transfer_params=None)
    llm = Llm([output("s", b"a"), others, output("s", b"b", b"c")], [], [output("s", b"d")])

    assert await read(llm) == [b"a", b"b", b"c", b"d"]


async def test_vllm_counts_what_only_carries_frames_and_processes_the_rest() -> None:
    llm = Llm()
    queue = RequestOutputCollector(RequestOutputKind.DELTA, "s")
    state = SimpleNamespace(is_prefilling=True, queue=queue)
    processed: list[Any] = []
    counted: list[Any] = []
    llm.output_processor = SimpleNamespace(
        request_states={"s": state},
        process_outputs=lambda outputs, *_, **__: processed.extend(outputs),
        _update_stats_from_output=lambda *call: counted.append(call),
    )
    engine = Engine(llm)
    inbox = engine._inboxes["s"] = []
    first, silent, second, third, last = (
        output("s", *frames) for frames in ([b"a"], [], [b"b"], [b"c"], [b"d"])
    )
    last.finished = True

    llm.output_processor.process_outputs([first], 1.5, None)
    state.is_prefilling = False
    llm.output_processor.process_outputs([silent], 1.5, None)
    assert queue.get_nowait() is None  # there is nothing to wake for
    llm.output_processor.process_outputs([second, third], 1.5, None)
    llm.output_processor.process_outputs([last], 1.5, None)

    assert [each.frame for each in inbox] == [b"a", b"b", b"c", b"d"]  # type: ignore[union-attr]
    assert processed == [first, last]
    assert counted == [(state, each, 1.5, None) for each in (silent, second, third)]
    woken = queue.get_nowait()
    assert woken is not None
    assert not woken.finished


async def test_frames_of_a_session_that_nobody_reads_here_are_dropped() -> None:
    assert await read(Llm([output("t", b"a"), output("s", b"b")])) == [b"b"]


async def test_a_complaint_ends_the_session_as_its_edges_fault() -> None:
    with pytest.raises(RemoteProtocolError, match="not a token"):
        await read(Llm([output("s", error="Draft.tokens: not a token")]))


async def test_a_name_that_is_taken_leaves_the_session_that_has_it_alone() -> None:
    engine = Engine(Llm([output("s", b"a")], [output("s", b"b")]))
    first = engine.generate("s", (1,), ASKED)
    assert (await anext(first)).frame == b"a"

    with pytest.raises(RemoteProtocolError, match="this name"):
        await anext(engine.generate("s", (1,), ASKED))

    assert (await anext(first)).frame == b"b"
    await first.aclose()
