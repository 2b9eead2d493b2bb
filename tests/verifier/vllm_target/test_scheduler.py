"""vLLM's own scheduler plans the steps of sessions here, without workers.

These tests show what a step has, what messages between two steps bring about, and when the core
wakes.
"""

from __future__ import annotations

import json
import time
from collections import deque
from math import inf
from pathlib import Path
from queue import Empty, Queue
from types import MethodType, SimpleNamespace
from typing import Any

import pytest

from speculation.distributions import Q_SCALE
from speculation.logit_settings import LogitSettings
from speculation.messages import Draft, Fill, Finish, Message, Open, Sampling
from speculation.model_facts import Judge, Limits
from speculation.verify_machine import VerifyMachine
from tests.guards import GUARD_S
from tests.verifier.vllm_target.model_configs import GENERATES
from verifier.vllm_target.ipc_messages import FIELD, PUSH, Admission
from verifier.vllm_target.packing import packed
from verifier.vllm_target.patcher import original
from verifier.vllm_target.runner_choice import RunnerChoice
from verifier.vllm_target.verify_request import MOST_ROWS

pytest.importorskip("vllm.v1.engine.core")  # its warnings are not ours
pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("default")]


class Planner:
    """A scheduler, and the core that has its steps under way. blocks: of 16 tokens each."""

    def __init__(self, folder: Path, blocks: int = 64, **options: Any) -> None:
        import torch
        from vllm.engine.arg_utils import EngineArgs
        from vllm.v1.kv_cache_interface import (
            FullAttentionSpec,
            KVCacheConfig,
            KVCacheGroupSpec,
        )
        from vllm.v1.structured_output import StructuredOutputManager

        from verifier.vllm_target.core.scheduler import PicoScheduler

        (folder / "config.json").write_text(json.dumps(GENERATES))
        small = {"load_format": "dummy", "max_model_len": 128, "enforce_eager": True}
        small |= {"skip_tokenizer_init": True, "max_num_seqs": 4, "block_size": 16}
        small |= {"enable_prefix_caching": False}
        room = {"method": "ngram", "num_speculative_tokens": 8}
        args = EngineArgs(str(folder), speculative_config=room, **(small | options))
        own = original(
            EngineArgs, "create_speculative_config"
        )  # another test may use the plugin
        args.create_speculative_config = MethodType(own, args)  # type: ignore[method-assign]
        config = args.create_engine_config()
        config.additional_config = RunnerChoice("v2", 7).added_to({})
        config.cache_config.num_gpu_blocks = blocks
        config.scheduler_config.async_scheduling = True
        spec = FullAttentionSpec(
            block_size=16, num_kv_heads=1, head_size=1, dtype=torch.float32
        )
        cache = KVCacheConfig(blocks, [], [KVCacheGroupSpec(["layer"], spec)])
        manager = StructuredOutputManager(config)
        self.scheduler: Any = PicoScheduler(config, cache, manager, 16, log_stats=False)
        self.machine: VerifyMachine = self.scheduler._machine
        self.under_way: deque[Any] = deque()
        self.sent: Queue[tuple[int, Any]] = Queue()
        """What the core sends between two steps."""

        self.scheduler.engine = SimpleNamespace(
            batch_queue=self.under_way, output_queue=self.sent
        )

    def add(
        self,
        name: str,
        adapter: int = 0,
        fill: Fill | None = None,
        tokens: int = 5,
        judge: Judge = "coupled",
        grammar: dict[str, Any] | None = None,
    ) -> None:
        """Add a request of a prompt of `tokens`, which is a session if it has a fill."""
        from vllm import SamplingParams
        from vllm.lora.request import LoRARequest
        from vllm.sampling_params import StructuredOutputsParams
        from vllm.v1.request import Request

        opened = Open("m", "v", (), Sampling(), 0, 90, (), judge, fill=fill or "auto")
        limits, drawn = Limits(max_verify=7), judge == "coupled"
        admission = Admission(name, opened, tokens, limits, LogitSettings(), 256, drawn)
        params = SamplingParams(
            max_tokens=90,
            extra_args={FIELD: admission.pack()} if fill else None,
            structured_outputs=StructuredOutputsParams(**grammar) if grammar else None,
        )
        lora = LoRARequest(f"{adapter}", adapter, "/") if adapter else None
        self.scheduler.add_request(
            Request(name, list(range(tokens)), params, None, lora_request=lora)
        )

    def drafted(self, name: str, known: int, *tokens: int) -> None:
        """Send draft tokens after `known` ones, each of which ended a chain."""
        self.scheduler.push(name, packed(Draft(known, known, 0, tokens)), 0.0)

    def remove(self, *names: str) -> None:
        from vllm.v1.request import RequestStatus

        self.scheduler.finish_requests(names, RequestStatus.FINISHED_ABORTED)

    @property
    def plans_ahead(self) -> bool:
        running = self.scheduler._taken_apart()
        return not self.scheduler._planner.decide(running, 0.0).waits

    def plan(self) -> set[str]:
        """Plan a step, and return the requests that it has."""
        self.under_way.append(output := self.scheduler.schedule())
        return set(output.num_scheduled_tokens)

    def end(self, token: int = 9) -> None:
        """End the oldest step, in which each request accepts no draft token."""
        from vllm.v1.outputs import ModelRunnerOutput

        names = list((output := self.under_way.popleft()).num_scheduled_tokens)
        places = {name: i for i, name in enumerate(names)}
        self.scheduler.update_from_output(
            output, ModelRunnerOutput(names, places, [[token]] * len(names))
        )


@pytest.fixture
def planner(tmp_path: Path) -> Planner:
    return Planner(tmp_path)


@pytest.fixture
def session(planner: Planner) -> Planner:
    """A planner whose session "s" has read its prompt, and is in no step."""
    planner.add("s", fill="auto")
    planner.plan()
    planner.end()
    return planner


# What a step has, and when it is planned.


def test_a_request_waits_while_the_adapter_of_a_hidden_session_has_the_last_place(
    tmp_path: Path,
) -> None:
    planner = Planner(tmp_path, enable_lora=True, max_loras=1)
    planner.add("session", adapter=1, fill="never")
    assert planner.plan() == {"session"}
    planner.end()
    planner.drafted("session", 1, 7, 7)
    assert planner.plan() == {"session"}
    planner.add("other", adapter=2)
    planner.add("same", adapter=1)

    without_the_session = planner.plan()  # whose drafts are under way

    planner.end()
    planner.end()
    planner.drafted("session", 2, 7, 7)
    assert planner.plan() == {"session", "same"}
    assert without_the_session == set()
    assert planner.scheduler.lora_config.max_loras == 1
    planner.remove("session", "same")
    assert planner.plan() == {"other"}


@pytest.mark.parametrize(
    ("options", "other"),
    [({"blocks": 5}, {"tokens": 50}), ({"enable_lora": True, "max_loras": 1}, {"adapter": 2})],
    ids=["no KV cache", "no adapter's place"],
)
def test_a_request_that_cannot_be_admitted_is_tried_once_and_no_more_steps_are_planned_ahead(
    options: dict[str, Any], other: dict[str, int], tmp_path: Path
) -> None:
    planner = Planner(tmp_path, **options)
    planner.add("session", adapter=int("adapter" in other), fill="auto")
    planner.plan()
    planner.end()
    planner.drafted("session", 1, 7, 7)
    planner.add("other", **other)

    tried = planner.plans_ahead, planner.plan(), planner.plans_ahead

    assert tried == (True, {"session"}, False)
    planner.end()
    planner.remove("session")
    assert planner.plan() == {"other"}


def test_steps_are_learned_apart_if_vllm_has_no_full_graph_for_them(planner: Planner) -> None:
    """Of two steps of as many rows one has a draft token, and runs on PIECEWISE graphs."""
    planner.machine.latency.observe(1, 1.0)
    for name in ("session", "a", "b"):
        planner.add(name, fill="auto" if name == "session" else None)
    for _ in range(2):  # the first reads the prompts
        planner.plan()
        planner.end()
    planner.remove("b")
    planner.drafted("session", 2, 7)
    planner.plan()
    planner.end()

    assert [*planner.machine.latency.learned_statistics()] == ["1", "3", "3 with drafts"]


def test_a_plan_has_the_length_that_each_request_will_have_on_the_device(
    planner: Planner,
) -> None:
    """Two batches are under way, and all draft tokens are rejected."""
    lengths, drafted = dict[str, int](), 0
    planner.machine.latency.observe(1, 1.0)

    def plan() -> None:
        nonlocal drafted
        planner.plan()
        output = planner.under_way[-1]
        cached = output.scheduled_cached_reqs
        known = dict(zip(cached.req_ids, cached.num_computed_tokens, strict=True))
        for name, rows in output.num_scheduled_tokens.items():
            drafts = output.scheduled_spec_decode_tokens.get(name, ())
            assert known.get(name, 0) == lengths.get(name, 0)
            lengths[name] = lengths.get(name, 0) + rows - len(drafts)
            drafted += len(drafts)

    planner.add("session", fill="auto")
    planner.add("other")
    plan()
    planner.end()
    for known in range(1, 4):
        planner.drafted("session", known, 7, 7)
        plan()
        plan()  # while the draft tokens are judged
        planner.end()
        planner.end()

    assert drafted > 0


@pytest.mark.parametrize(
    ("batched", "requests", "rows"),
    [(8192, 64, MOST_ROWS), (8192, 2000, 2000), (512, 64, 512)],
    ids=["memory", "a row for each request", "vLLM's own bound"],
)
def test_a_step_has_no_more_rows_than_there_is_memory_for(
    batched: int, requests: int, rows: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planner = Planner(tmp_path, max_num_batched_tokens=batched, max_num_seqs=requests)
    offered: list[int] = []
    allot = planner.machine.allot

    def noting(ready: Any, *, rows: int, **more: Any) -> Any:
        offered.append(rows)
        return allot(ready, rows=rows, **more)

    monkeypatch.setattr(planner.machine, "allot", noting)
    planner.add("s", fill="auto")

    planner.plan()

    assert offered == [rows]


@pytest.mark.parametrize(
    "asked",
    [{"grammar": {"regex": "a+"}}, {"fill": "auto", "judge": "separate"}],
    ids=["a grammar", "a session judged separate"],
)
def test_what_needs_each_result_does_so_until_it_has_ended(
    asked: dict[str, Any], session: Planner
) -> None:
    session.add("plain")
    session.plan()
    assert session.plans_ahead

    session.add("needs", **asked)
    assert not session.plans_ahead
    session.remove("needs")
    assert session.plans_ahead


def test_a_request_that_waits_is_admitted_if_a_seat_is_free(planner: Planner) -> None:
    admits = []
    for name in "abcde":  # there are four seats
        planner.add(name)
        admits.append(planner.scheduler._taken_apart().admits)
        planner.plan()

    assert admits == [True] * 4 + [False]
    assert not planner.scheduler._taken_apart().admits


def test_a_prompt_is_read_in_short_parts_beside_a_held_session_too(tmp_path: Path) -> None:
    planner = Planner(tmp_path, long_prefill_token_threshold=16)
    planner.add("held", fill="never")
    planner.plan()
    planner.end()
    planner.add("prompt", tokens=50)

    assert planner.plan() == {"prompt"}
    assert planner.under_way[-1].num_scheduled_tokens["prompt"] == 16
    assert planner.scheduler.get_request_counts() == (2, 0)


def test_a_step_without_a_session_is_vllms_own_and_counts_when_its_result_is_known(
    planner: Planner,
) -> None:
    planner.add("plain")
    planner.plan()
    assert not hasattr(planner.under_way[-1], "picospec_requests")
    assert planner.scheduler.figures()["steps"] == 0

    planner.end()

    assert planner.scheduler.figures()["steps"] == 1


def test_a_grammar_of_any_request_keeps_a_step_from_being_learned_once_one_ran_without(
    session: Planner,
) -> None:
    session.add("plain", grammar={"regex": "a+"})
    session.scheduler._has_run_without_grammars = False

    def is_slowed(*scheduled: str) -> bool:
        step: Any = SimpleNamespace(num_scheduled_tokens=dict.fromkeys(scheduled, 1))
        return bool(session.scheduler._is_slowed(step))

    assert not is_slowed("s", "plain")  # there is nothing else to learn from
    assert not is_slowed("s")
    assert is_slowed("s", "plain")
    assert not is_slowed("s", "finished meanwhile")


# What comes for a session between two steps, and what it brings about.


def test_what_comes_for_a_session_gets_the_time_when_it_came() -> None:
    from vllm.v1.engine import EngineCoreRequestType

    from verifier.vllm_target.core.sessions import put_stamped

    received: Queue[Any] = Queue()
    messages = [
        (EngineCoreRequestType.WAKEUP, None),
        (EngineCoreRequestType.UTILITY, [0, 1, "picospec_figures", []]),
        (EngineCoreRequestType.UTILITY, [0, 2, PUSH, [[["s", b"frames"]]]]),
    ]
    for message in messages:
        put_stamped(received.put_nowait, message)

    (_, _), (_, figures), (_, push) = (received.get() for _ in messages)
    assert figures[3] == []
    assert push[3] == [[["s", b"frames"]], pytest.approx(time.monotonic(), abs=GUARD_S)]


@pytest.mark.parametrize(
    ("message", "error"),
    [
        (Finish("stop"), "Finish"),
        (Draft(1, 1, 0, (1000,)), "not a token"),
        (Draft(1, 1, 0, (5,), (Q_SCALE,)), "Draft.q"),
    ],
)
def test_what_no_honest_edge_sends_ends_the_session_and_is_told(
    message: Message, error: str, session: Planner
) -> None:
    session.drafted("s", 1, 5)
    session.drafted("gone", 1, 5)  # for a session that has ended it is dropped
    assert session.sent.empty()

    session.scheduler.push("s", packed(message), 12.5)

    client, batch = session.sent.get_nowait()
    name, frames, told = batch.outputs[0].kv_transfer_params[FIELD]
    assert (client, name, frames) == (0, "s", [])
    assert error in told
    assert session.scheduler.figures()["sessions"] == 0


def test_a_batch_is_taken_without_an_answer_and_a_bug_ends_the_session_that_has_it(
    session: Planner, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vllm.v1.engine import EngineCoreRequestType

    session.add("t", fill="auto")
    answered: list[Any] = []
    arrivals: list[tuple[str, float]] = []

    def received(name: str, message: object, *, arrived: float) -> list[Any]:
        arrivals.append((name, arrived))
        if name == "s":
            raise KeyError("a bug")
        return []

    monkeypatch.setattr(session.machine, "received", received)
    draft = packed(Draft(1, 1, 0, (5,)))
    calls = [PUSH, [[["s", draft], ["t", draft]], 12.5]], ["picospec_read", []]

    for name, given in calls:
        asked = [0, 0, name, given]
        session.scheduler._handle(
            lambda *call: answered.append(call), EngineCoreRequestType.UTILITY, asked
        )

    _, batch = session.sent.get_nowait()
    assert arrivals == [("s", 12.5), ("t", 12.5)]
    assert (batch.outputs[0].request_id, batch.outputs[0].finished) == ("s", True)
    assert session.scheduler.figures()["sessions"] == 1
    assert [request[2] for _, request in answered] == ["picospec_read"]


# When the core wakes.


def test_a_core_that_waits_wakes_at_the_time_and_messages_come_first() -> None:
    from vllm.v1.engine import EngineCoreRequestType

    from verifier.vllm_target.core.sessions import get_in_time

    received: Queue[str] = Queue()
    received.put_nowait("a message")
    begun = time.monotonic()

    assert get_in_time(received.get, 0.0) == "a message"
    assert get_in_time(received.get, 0.0)[0] is EngineCoreRequestType.WAKEUP
    assert get_in_time(received.get, begun + 0.05)[0] is EngineCoreRequestType.WAKEUP
    assert time.monotonic() - begun >= 0.05
    for at in (0.0, inf):
        with pytest.raises(Empty):  # one that only looks does not wait
            get_in_time(received.get, at, block=False)


def test_a_core_asks_once_a_step_whether_its_sessions_wait(
    session: Planner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """vLLM asks two or three times for each step, and each answer looks at all sessions."""
    asked: list[object] = []
    monkeypatch.setattr(session.machine, "wait_s", lambda names, now: asked.append(names) or 0)

    assert session.scheduler.has_requests()
    assert session.scheduler.has_requests()
    assert len(asked) == 1

    session.drafted("s", 1, 5)
    assert session.scheduler.has_requests()
    assert len(asked) == 2
