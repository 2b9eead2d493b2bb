"""The check of a GPU host: each part's result is reported, and none ends the others."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import cast

import httpx
import pytest
from scipy.stats import fisher_exact

from bench.capacity import Figures, Row
from bench.gpu_check import __main__ as command_line
from bench.gpu_check import quick
from bench.gpu_check.engines import MERGED, PLUGGED, STOCK, Engines
from bench.gpu_check.loads import AGAIN, UNPLUGGED
from bench.gpu_check.parts import Check, NotRun, command
from bench.gpu_check.quick import Quick, compared, differing
from bench.gpu_check.serving import Serving
from bench.run.client import Reply
from bench.run.services import Services, ServicesPlan
from bench.statistics import fisher
from gateway.hosting.processes import ServiceDied
from speculation.messages import Sampling
from tests.verifier.vllm_target.v2.tiny import make

ANY = ServicesPlan("any", "any", {})
HEAD = '{"method": "eagle3"}'


def engines(head: str = "") -> Engines:
    return Engines(ANY, (), 8, (1, 16), head)


async def ended(result: tuple[bool, str] | BaseException) -> tuple[bool, str]:
    if isinstance(result, BaseException):
        raise result
    return result


DIED = ServiceDied("verifier", 1, ["CUDA error: out of memory"])
DIED_SO = "```\nServiceDied: the verifier ended with status 1\nCUDA error: out of memory\n```"


@pytest.mark.parametrize(
    ("result", "verdict", "found"),
    [
        ((True, "a figure"), "PASS", "a figure"),
        ((False, "a figure"), "FAIL", "a figure"),
        (DIED, "FAIL", DIED_SO),
        (ExceptionGroup("", [DIED]), "FAIL", DIED_SO),
        (NotRun("this device is too old"), "not run", "this device is too old"),
    ],
    ids=["right", "wrong", "a service dies", "in a group", "not supported"],
)
async def test_whatever_ends_a_part_is_its_result_and_the_next_part_is_run(
    result: tuple[bool, str] | BaseException, verdict: str, found: str
) -> None:
    check = Check(["a note"])

    passed = await check.run("one", 9.0, partial(ended, result))
    assert await check.run("next", 9.0, partial(ended, (True, "")))

    assert (passed, check.failed) == (verdict == "PASS", verdict == "FAIL")
    report = check.finish()
    title = {"PASS": "PASS", "FAIL": "FAIL", "not run": "PASS, 1 not run"}[verdict]
    assert report.startswith(f"# GPU check: {title}\n\na note\n\n")
    assert f"| one | {verdict} | 0 |\n| next | PASS | 0 |" in report
    assert f"## one: {verdict}\n\n{found}\n" in report


async def test_a_part_that_takes_too_long_fails() -> None:
    check = Check()

    async def endless() -> tuple[bool, str]:
        check.step("the engine starts")
        await asyncio.Event().wait()
        return True, ""

    assert not await check.run("endless", 0.01, endless)
    assert check.parts[0].found == (
        "While: the engine starts.\n\nIt was not done within 0.01 s."
    )


async def test_a_check_that_is_ended_leaves_its_report_so_far(tmp_path: Path) -> None:
    out = tmp_path / "folder" / "report.md"
    check = Check(out=out)

    await check.run("one", 9.0, partial(ended, (True, "")))
    assert out.read_text().startswith("# GPU check: not finished\n")
    with pytest.raises(asyncio.CancelledError):
        await check.run("two", 9.0, partial(ended, asyncio.CancelledError()))
    assert "## two: FAIL\n\nIt was ended from outside." in out.read_text()


async def test_a_command_that_fails_shows_its_last_errors_where_it_printed_nothing() -> None:
    script = "import sys; print('a figure' * int(sys.argv[1])); sys.exit(sys.argv[2])"
    failing = partial(command, sys.executable, "-c", script)

    assert await command("echo", "a figure") == (True, "a figure")
    assert await failing("1", "no such device") == (False, "a figure")
    assert await failing("0", "no such device") == (False, "```\nno such device\n```")


@pytest.mark.parametrize("has_gpu", [False, True])
async def test_a_host_without_a_gpu_or_a_fitting_driver_fails_before_anything_starts(
    has_gpu: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if has_gpu:
        (smi := tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho 'NVIDIA H100, 535.1'\n")
        smi.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(command_line, "TRIAL", "raise SystemExit('the driver is too old')")
    found = engines()

    await command_line._run("cuda", Serving(found))

    host, *others = found.check.parts
    assert [host.verdict, *(part.verdict for part in others)] == ["FAIL", *["not run"] * 5]
    assert ("does not run on this driver" in host.found) is has_gpu
    assert ("the driver is too old" if has_gpu else "nvidia-smi") in host.found


@dataclass(frozen=True, slots=True)
class Scripted(Serving):
    """Its answers have 10 tokens, and take so many seconds by the address that is asked."""

    seconds: Mapping[tuple[str, int], float] = field(default_factory=dict)

    async def load(self, url: str, clients: int) -> tuple[list[Reply], float]:
        return [Reply("text", 10, (0.25,), 1.0, 0.5)], self.seconds[url, clients]


@pytest.mark.parametrize(("edge_s", "right"), [(1.1, True), (1.2, False)])
async def test_the_edge_may_be_little_slower_than_cloud_at_either_load(
    edge_s: float, right: bool
) -> None:
    edge = {("edge", 1): 1.0, ("edge", 8): edge_s}
    seconds = {("plain far away", 1): 2.0, ("plain far away", 8): 1.0, **edge}
    serving = Scripted(engines(), seconds=seconds)

    found = await serving.speeds({"cloud": "plain far away", "picospec": "edge"})

    assert found[0] == right
    assert f"made 2.00 and {1 / edge_s:.2f} times as many tokens/s" in found[1]
    assert "| 1 | cloud | 5.0 | 250 |\n| 1 | picospec | 10.0 | 250 |" in found[1]


def row(sessions: int, tokens_per_s: float, busy_share: float = 0.5) -> Row:
    figures = Figures(tokens_per_s, 1.0, 1.0, 5.0, 9.0, 1.0)
    return Row(sessions, "cloud", figures, busy_share)


@pytest.mark.parametrize(
    ("rates", "right", "told"),
    [
        ({PLUGGED: 90.0}, True, f"| 16 | {PLUGGED} | 90.0 | 0.90 |"),
        ({PLUGGED: 89.0}, False, "too slow"),
        ({PLUGGED: 50.0, UNPLUGGED + AGAIN: 55.0}, True, "not steady"),
        ({PLUGGED: 50.0, UNPLUGGED + AGAIN: 99.0}, False, "too slow"),
        ({PLUGGED: 99.0, quick.FAST: 90.0}, True, f"| 16 | {quick.FAST} | 90.0 | 0.90 |"),
        ({PLUGGED: 99.0, quick.FAST: 89.0}, False, "too slow"),
        ({PLUGGED: 99.0, STOCK + "head": 10.0, MERGED + "head": 8.0}, False, "0.80 of the"),
        ({}, False, "0.9 is the least"),
    ],
    ids=[
        "the plugin costs little", "much", "less than the host itself", "much, measured twice",
        "sessions are little slower", "much", "than the head alone", "nothing is measured",
    ],
)  # fmt: skip
async def test_the_plugin_and_sessions_may_be_little_slower_than_what_they_replace(
    rates: Mapping[str, float], right: bool, told: str
) -> None:
    found = engines(HEAD)
    found.loads.add(UNPLUGGED, row(16, 100.0))
    for name, tokens_per_s in rates.items():
        found.loads.add(name, row(16, tokens_per_s))

    verdict, table = await found.table()

    assert verdict == right
    assert told in table


@pytest.mark.parametrize("full", [UNPLUGGED, PLUGGED])
async def test_no_ratio_is_concluded_from_clients_that_are_full(full: str) -> None:
    found = engines()
    for name, tokens_per_s in ((UNPLUGGED, 100.0), (PLUGGED, 50.0)):
        found.loads.add(name, row(16, tokens_per_s, 0.95 if name == full else 0.5))

    with pytest.raises(NotRun, match="16 at once: not measured, the clients were full"):
        await found.table()

    found.loads.add(PLUGGED, row(1, 100.0))
    found.loads.add(UNPLUGGED, row(1, 100.0))
    assert (await found.table())[0]


class Started(Engines):
    """Its engines make so many tokens/s, and are not started."""

    async def _engine(
        self, name: str, plan: ServicesPlan, sessions: object
    ) -> tuple[bool, str]:
        for each in cast(Sequence[int], sessions):
            self.loads.add(name, row(each, 10.0))
        return True, ""


async def test_what_a_slow_engine_is_compared_with_is_measured_again_once() -> None:
    found = Started(ANY, (), 8, (1, 16))
    await found.check_stock()
    found.loads.add(PLUGGED, row(1, 9.0))
    await found.check_again()
    assert not found.loads.has(UNPLUGGED + AGAIN)

    found.loads.add(PLUGGED, row(16, 8.0))
    await found.check_again()
    await found.check_again()

    names = [part.name for part in found.check.parts]
    assert names == [UNPLUGGED, STOCK + "n-gram", UNPLUGGED + AGAIN]
    again = [key for key in found.loads.rows if key[1] == UNPLUGGED + AGAIN]
    assert again == [(16, UNPLUGGED + AGAIN)]


@pytest.mark.parametrize(("device", "verdict"), [("cpu", "not run"), ("cuda", "PASS")])
async def test_sessions_are_merged_with_vllms_own_speculation_on_a_gpu(
    device: str, verdict: str
) -> None:
    found = Started(ANY, (), 8, (1, 16), HEAD)

    await found.check_merged(device)

    parts = [(part.name, part.verdict) for part in found.check.parts]
    assert parts == [(MERGED + "n-gram", verdict), (MERGED + "head", verdict)]


@pytest.mark.parametrize("group", [(0, 12), (1, 12), (4, 12), (12, 12)])
@pytest.mark.parametrize("control", [(0, 12), (3, 16), (12, 12)])
def test_fishers_probability_is_scipys(
    group: tuple[int, int], control: tuple[int, int]
) -> None:
    table = [[hits, size - hits] for hits, size in (group, control)]

    assert fisher(group, control) == pytest.approx(
        fisher_exact(table, alternative="greater")[1]
    )


def texts(*others: int) -> dict[str, list[Sequence[int]]]:
    """Return twelve texts, of which these are other ones."""
    return {quick.GREEDY: [(i, 7, 7 if i in others else 8) for i in range(12)]}


@pytest.mark.parametrize(
    ("control", "group", "right"),
    [((), (), True), ((), (1, 2), True), ((), (1, 2, 3, 4), False),
     ((5, 6, 7), (1, 2, 3, 4), True), ((5,), range(8), False)],
)  # fmt: skip
def test_sessions_may_not_differ_more_often_than_stock_vllm_does_from_itself(
    control: Sequence[int], group: Sequence[int], right: bool
) -> None:
    verdict, found = compared(texts(), texts(*control), {"sessions": texts(*group)})

    assert verdict == right
    assert f"| sessions | {len(group)} of 12 |" in found


def test_what_differs_beyond_the_compared_tokens_does_not_count() -> None:
    long = [7] * quick.TOKENS

    group, expected = {"a": [[*long, 1], [8, *long]]}, {"a": [[*long, 2], long]}
    assert differing(group, expected) == (1, 2)
    assert not compared(texts(), texts(), {})[0]


@dataclass
class Silent(Quick):
    """No engine of its own starts, but the texts of those that did are known."""

    async def _start(self, running: object, services: Services) -> tuple[bool, str]:
        if services.plan.rival:
            return True, ""
        raise ServiceDied("verifier", 1, ["out of memory"])

    async def _asked(self, services: Services, at_once: int = 1, **named: str) -> quick.Texts:
        return texts()

    async def _missing(self, works: object, folder: Path) -> str:
        return ""


@pytest.mark.parametrize(("others", "verdict"), [((), "PASS"), (range(9), "FAIL")])
async def test_whatever_fails_the_other_parts_of_the_quick_check_are_run(
    others: Sequence[int], verdict: str
) -> None:
    found = Silent(engines())
    found.prompts, found.texts = [(i,) for i in range(12)], {quick.FAST: texts(*others)}

    await found.run()

    verdicts = {part.name: part.verdict for part in found.check.parts}
    assert verdicts["start-up"] == "FAIL"
    assert verdicts[f"{quick.AT_ONCE} sessions"] == verdicts[PLUGGED] == "not run"
    assert verdicts[f"{UNPLUGGED} starts"] == "PASS"
    assert verdicts["identity"] == verdict
    assert list(verdicts)[-1] == "all loads"


def test_passes_are_counted_by_the_mode_of_their_cuda_graphs() -> None:
    log = [
        "INFO 12-02 [cuda_graph.py:118] | Unpadded Tokens | ... | Runtime Mode | Count |",
        "INFO 12-02 [cuda_graph.py:118] | 16              | ... | FULL         | 120   |",
        "INFO 12-02 [cuda_graph.py:118] | 80              | ... | PIECEWISE    | 3     |",
        "INFO 12-02 [cuda_graph.py:118] | 16              | ... | FULL         | 40    |",
    ]

    assert quick.graphs(log).endswith(": FULL 160, PIECEWISE 3.")
    assert quick.graphs([]).endswith(": none were reported.")


def test_an_edge_and_vllm_are_asked_for_the_same_settings() -> None:
    penalties, top_p = quick.SETTINGS["penalties"], quick.SETTINGS["top-p"]

    assert quick.in_session(quick.NEUTRAL) == (Sampling(temperature=0.0), {})
    assert quick.in_session(top_p) == (Sampling(temperature=0.8, top_p=0.95), {})
    assert quick.in_session(penalties) == (
        Sampling(temperature=0.0),
        {"repetition_penalty": 1.1, "presence_penalty": 0.5},
    )
    assert list(Quick(engines(), "cpu").settings) == [quick.GREEDY, "penalties"]


def test_a_defect_that_shows_with_one_kind_of_settings_is_found() -> None:
    right = {name: texts()[quick.GREEDY] for name in quick.SETTINGS}
    group = right | {"penalties": texts(*range(6))[quick.GREEDY]}

    verdict, found = compared(right, right, {"sessions": group})

    assert not verdict
    assert "| sessions | 6 of 48 | 0 | 6 | 0 | 0 | 0.013 |" in found


BATCH_INVARIANT = {"VLLM_BATCH_INVARIANT": "1"}


@pytest.mark.parametrize(
    ("stock_starts", "stock_answers", "verdict"),
    [(True, True, "FAIL"), (True, False, "not run"), (False, False, "not run")],
)
async def test_a_batch_invariant_start_fails_unless_vllm_alone_does_not_answer_either(
    stock_starts: bool, stock_answers: bool, verdict: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def starts(services: Services) -> Services:
        if services.plan.rival is None or not stock_starts:
            raise ServiceDied("verifier", 1, ["TypeError: warm_up() got an argument"])
        return services

    async def ends(*_: object) -> None:
        pass

    async def answers(*_: object, **__: object) -> Sequence[int]:
        if not stock_answers:
            raise httpx.ConnectError("its core has ended")
        return [7]

    monkeypatch.setattr(quick, "answered", answers)
    monkeypatch.setattr(Services, "__aenter__", starts)
    monkeypatch.setattr(Services, "__aexit__", ends)
    found = Quick(engines(), "cpu")
    name = f"{quick.INVARIANT} start-up"

    await found._engine(name, ServicesPlan("any", "any", {}, environment=BATCH_INVARIANT), {})

    assert [part.verdict for part in found.check.parts] == [verdict]
    assert "warm_up() got an argument" in found.check.parts[0].found


@pytest.mark.long
@pytest.mark.vllm
def test_the_quick_check_runs_to_its_end_beside_vllm(tmp_path: Path) -> None:
    pytest.importorskip("vllm")
    model, report = make(tmp_path / "tiny"), tmp_path / "report.md"
    command = (
        sys.executable, "-m", "bench.gpu_check", "--quick", "--device", "cpu",
        "--target-model", str(model), "--out", str(report),
        "--per-family", "1", "--tokens", "24", "--sessions", "1,4",
        "--vllm.dtype", "float32", "--vllm.max-model-len", "1024",
        "--vllm.kv-cache-memory-bytes", str(1 << 27),
    )  # fmt: skip

    quiet = {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}
    subprocess.run(command, env=os.environ | quiet, timeout=1500, check=False)

    told = report.read_text()
    for part in ("start-up", "PicoSpec's texts", "16 sessions", "identity", UNPLUGGED,
                 quick.SWITCHED, quick.ADAPTERS):  # fmt: skip
        assert f"| {part} | PASS |" in told
    for part in ("batch-invariant", "two GPUs", "vLLM's noise"):  # there are none on CPUs
        assert f"| {part} | not run |" in told
    assert "| all loads | " in told


@pytest.mark.vllm
def test_the_kernels_need_torch_and_numpy_alone_and_the_machine_msgspec() -> None:
    pytest.importorskip("torch")
    script = (
        "import sys\n"
        "for name in ('vllm', 'msgspec', 'rich', 'httpx', 'pydantic', 'starlette'):\n"
        "    sys.modules[name] = None\n"
        "import bench.gpu_check.kernels\n"
        "del sys.modules['msgspec']\n"
        "import bench.pace.machine\n"
    )

    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.vllm
def test_the_kernels_are_measured_where_there_is_no_gpu_either(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    report = tmp_path / "report.md"
    command = sys.executable, "-m", "bench.gpu_check.kernels", "--out", str(report)

    subprocess.run(command, timeout=300, check=True)

    assert "FAIL" not in report.read_text()
    figures = json.loads(report.with_suffix(".json").read_text())
    for judge in ("judging by noise", "judging by p"):
        assert [line["rows"] for line in figures[judge]] == [1, 34]
    passes = [(line["rows"], line["sessions"]) for line in figures["passes"]]
    assert passes == [(1, 1), (34, 1), (34, 34)]
    assert figures["parts"]["vLLM's noise"] == "not run"  # vLLM has no Triton on a CPU


@pytest.mark.vllm
@pytest.mark.parametrize(("steps", "is_far"), [(31.0, False), (34.0, True)])
def test_scores_are_far_apart_if_noise_that_is_accepted_cannot_swap_them(
    steps: float, is_far: bool
) -> None:
    """Noise near 10 that is MOST_ULP = 16 steps off, once up and once down, swaps 32 steps."""
    torch = pytest.importorskip("torch")
    from bench.gpu_check.kernels import far

    step = 2.0**-20  # of float32 between 8 and 16
    noises = torch.tensor([[10.0, 10.0 + steps * step, 0.0]])
    logits = torch.tensor([[-9.5, -9.5, -1.0]])

    assert far(logits, noises, torch.tensor([0])).tolist() == [is_far]
    assert far(logits, noises, torch.tensor([1])).tolist() == [False]
