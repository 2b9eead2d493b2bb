"""Measures what PicoSpec needs of a GPU, in 90 seconds, on a host without vLLM or models.

    PYTHONPATH=. python3 -m bench.gpu_check.kernels --out build/gpu-kernels.md

It needs torch and numpy; judging by p and the machine's step also msgspec. Where vLLM is, it
also compares vLLM's noise with ours. Figures go to the report and, as JSON, beside it. Without
a GPU it runs in a small form on the CPU, which shows that it works.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from argparse import ArgumentParser
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from importlib.metadata import version
from operator import mul
from pathlib import Path
from random import Random
from shutil import which
from statistics import median
from time import perf_counter
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import rms_norm, scaled_dot_product_attention, silu

from bench.gpu_check.parts import VLLMS_NOISE, Check, Found, NotRun
from bench.tables import of_values
from speculation import noise
from verifier.vllm_target.worker import by_noise

Line = Mapping[str, str | float]
Judged = tuple[Callable[[], object], bool]
"""A Judged is a call of a judge, to be timed, and True if its outcome is right."""

REPORT: Final = Path("build/gpu-kernels.md")
WIDTH: Final = 33
"""A session's pass has this many rows: those of 32 draft tokens, and its own."""

CONTEXT: Final = 1024
"""Attention reads this many tokens of each session."""

LAYERS: Final = 4
"""This many layers of a model are timed, and the time is scaled to all of them."""

MOST_SESSIONS: Final = 264
"""Passes of sessions with one row each are timed up to this many sessions."""

REPEATS: Final = 5
RIGHT: Final = 0.8
"""This share of the draft tokens is right, where shared noise judges."""

LIKELY: Final = 4
"""This many tokens are likely where p judges, and one of them is each draft token."""

CHECKED: Final = 4
"""This many passes of each size are compared with what numpy makes of them."""

MOST_ULP: Final = 16.0
"""Noise of a right kernel differs from numpy's by at most so many float32 steps, of the noise
or of 1. `far` follows from it: it says which scores such noise cannot swap."""


@dataclass(frozen=True, slots=True)
class Shape:
    """A Shape has the sizes of a model. inner: the width of its feed-forward layers."""

    name: str
    layers: int
    hidden: int
    inner: int
    heads: int
    kv_heads: int
    vocabulary: int = 152_064
    head: int = 128


@dataclass(frozen=True, slots=True)
class Size:
    """A Size says how much is computed."""

    seeds: int
    vocabulary: int
    rows: Sequence[int]
    shapes: Sequence[Shape]
    argmaxes: Sequence[int]
    sessions: Sequence[int]
    limit_s: float
    """A part takes no further sizes after this many seconds."""


ON_GPU: Final = Size(
    1000, 152_064, (1, 2, 4, 8, 16, 33, 66, 132, 264, 528, 1056, 2112),
    (Shape("7B", 28, 3584, 18_944, 28, 4), Shape("32B", 64, 5120, 27_648, 40, 8)),
    (1, 34, 512), (16, 64, 256), 12.0,
)  # fmt: skip
ON_CPU: Final = Size(
    4, 1000, (1, 34),
    (Shape("tiny", 8, 64, 128, 4, 2, 512, 16),), (1, 34, 64), (4,), 9.0,
)  # fmt: skip


@dataclass(slots=True)
class Kernels:
    """Runs the parts. Each returns whether it passes, and its figures as Markdown."""

    size: Size
    device: str
    figures: dict[str, Sequence[Line]] = field(default_factory=dict)

    async def run(self, check: Check, only: str = "") -> None:
        """Run all parts, or only one, whichever fail, and keep their figures after each."""
        by_noise, by_p = "judging by noise", "judging by p"
        parts: dict[str, Callable[[], Found]] = {
            "host": self.host, VLLMS_NOISE: self.vllms_noise,
            by_noise: partial(self._by_rows, by_noise, self.by_noise),
            by_p: partial(self._by_rows, by_p, self.by_p), "the machine's step": self.machine,
            "argmaxes that change with the rows": self.argmaxes, "pass by rows": self.passes,
        }  # fmt: skip
        for name, part in parts.items():
            if only not in ("", name):
                continue
            await check.run(name, self.size.limit_s, partial(_as_work, part))
            if check.out:
                verdicts = {part.name: part.verdict for part in check.parts}
                text = json.dumps({"parts": verdicts, **self.figures}, indent=1)
                check.out.with_suffix(".json").write_text(text)

    def host(self) -> Found:
        """Describe the host. Fails where torch does not find the GPU that its driver has."""
        device = torch.cuda.get_device_name() if self.device == "cuda" else "no GPU"
        lost = self.device != "cuda" and which("nvidia-smi") is not None
        versions = {name: _version(name) for name in ("torch", "triton", "numpy", "msgspec")}
        line: Line = {"device": device, "cores": os.cpu_count() or 1, **versions}
        table = self._table("host", [line])
        return not lost, table + (f"\n\n{misfit()}" if lost else "")

    def vllms_noise(self) -> Found:
        """Compare what vLLM's own sampler draws with what noise.py's noise draws: from random
        logits, and from some that leave a token ahead unless the noise of another is too far
        off. Raises NotRun if vLLM has no Triton."""
        from vllm.triton_utils import HAS_TRITON

        if not HAS_TRITON:
            raise NotRun("vLLM has no Triton here.")
        from vllm.v1.worker.gpu.sample.gumbel import gumbel_sample

        def drawn(logits: Tensor, seed: int, at: int) -> Tensor:
            rows = torch.arange(len(logits), dtype=torch.int32, device=self.device)
            seeds, places = (torch.full_like(rows, x, dtype=torch.int64) for x in (seed, at))
            return gumbel_sample(
                logits, rows, torch.ones_like(rows, dtype=torch.float32), seeds, places,
                apply_temperature=False, is_drafting=False,
            )  # fmt: skip

        draws, off = Draws(), 0
        for seed, at, found in self._noises():
            right = torch.from_numpy(found).to(self.device).expand(REPEATS, -1)
            logits = 2 * torch.randn_like(right)
            draws.add(logits, right, drawn(logits, seed, at))
            ahead = torch.randint(len(found), (REPEATS, 1), device=self.device)
            room = MOST_ULP * _steps(right)
            level = (-right - room).scatter(1, ahead, (room - right).gather(1, ahead))
            off += int((drawn(level, seed, at) != ahead[:, 0]).sum())
        line = {**draws.figures, f"noise off by more than {MOST_ULP:g} ulp": off}
        return draws.right and off == 0, self._table(VLLMS_NOISE, [line])

    def _noises(self) -> Iterator[tuple[int, int, NDArray[np.float32]]]:
        """Yield seeds (of a uint64's bits), noise indices and the noise that noise.py has."""
        chance, at_once = Random(1), 2 * (os.cpu_count() or 1)
        tokens = np.arange(self.size.vocabulary)
        draw, seeds = chance.randrange, range(self.size.seeds)
        keys = [(draw(-(2**63), 2**63), draw(1 << 20)) for _ in seeds]

        def expected(key: tuple[int, int]) -> NDArray[np.float32]:
            return noise.gumbel(key[0] % 2**64, key[1], tokens).astype(np.float32)

        with ThreadPoolExecutor() as threads:
            for first in self._within(range(0, len(keys), at_once)):
                some = keys[first : first + at_once]
                for key, row_noise in zip(some, threads.map(expected, some), strict=True):
                    yield *key, row_noise

    def _by_rows(self, name: str, judge: Callable[[int], Judged]) -> Found:
        """Time a judge, and check it, at each number of rows."""
        lines, all_right = list[Line](), True
        for rows in self._within(self.size.rows):
            call, right = judge(rows)
            all_right &= right
            lines.append({"rows": rows, **self._timed(call)})
        return all_right and bool(lines), self._table(name, lines)

    def by_noise(self, rows: int) -> Judged:
        """Return a call of the judge of shared noise, and whether it is right. vLLM's kernel
        draws the tokens; here the argmax stands in for it, which reads the logits as well."""
        logits, numbers = self._logits(rows), torch.arange(rows, device=self.device)
        ends = torch.tensor([end for _, end in bounds(rows)], device=self.device)
        columns, drawn = numbers % WIDTH, logits.argmax(dim=1)
        drafted = drawn.roll(1) + (torch.rand(rows, device=self.device) > RIGHT)

        def call() -> tuple[Tensor, Tensor]:
            again = logits.argmax(dim=1)
            return by_noise.judged(again, drafted, ends, columns, WIDTH - 1)

        sampled, counts = (each.cpu().numpy() for each in call())
        right, text, drafts = True, drawn.cpu().numpy(), drafted.cpu().numpy()
        for i, (start, end) in enumerate(bounds(rows)):
            same = text[start : end - 1] == drafts[start + 1 : end]
            right &= int(counts[i]) == 1 + int(same.cumprod().sum())
            right &= sampled[i, : end - start].tolist() == text[start:end].tolist()
        return call, right

    def by_p(self, rows: int) -> Judged:
        """Return a call of the judge of rules that need p, and whether it is right."""
        from speculation.distributions import Q_SCALE
        from speculation.messages import Sampling
        from speculation.separate import Separate
        from verifier.vllm_target.verify_request import VerifyRequest
        from verifier.vllm_target.worker.by_p import judge_by_p

        logits, chance = self._logits(rows), np.random.default_rng(3)
        logits[:, :LIKELY] = 18.0 + logits[:, :LIKELY] / 10
        requests = []
        for start, end in bounds(rows):
            drafts = end - start - 1
            weights = tuple(chance.integers(1, Q_SCALE, drafts).tolist())
            rule = Separate(weights, tuple(chance.random(drafts + 1).tolist()))
            draft = tuple(chance.integers(0, LIKELY, drafts).tolist())
            requests.append(VerifyRequest(Sampling(1.0), rule, draft))
        starts = [start for start, _ in bounds(rows)]

        right = True
        judgements = judge_by_p(requests, logits, starts)
        for own, request, start in list(zip(judgements, requests, starts, strict=True))[
            :CHECKED
        ]:
            read = logits[start : start + WIDTH].cpu().numpy()
            expected = request.judge_logits(read.__getitem__)
            right &= (own.tokens, own.accepted) == (expected.tokens, expected.accepted)
            if wanted := expected.rejection:
                best = int(wanted.p.tokens[wanted.p.p.argmax()])
                share = own.rejection.p.of(best) if own.rejection else 0.0
                right &= bool(np.isclose(share, wanted.p.of(best), rtol=1e-4))
        return lambda: judge_by_p(requests, logits, starts), right

    def machine(self) -> Found:
        """Time a step of the verifier's machine on this host's processor."""
        measured = import_module("bench.pace.machine").measured
        times = measured(self._within(self.size.sessions), 40)
        lines: list[Line] = [{"sessions": count, **figures} for count, figures in times]
        return bool(lines), self._table("machine", lines)

    def argmaxes(self) -> Found:
        """Count the rows whose argmax is another one if other rows are computed with them."""
        lines = list[Line]()
        for shape in self.size.shapes:
            model, (first, *others) = Model(shape, self.device), self.size.argmaxes
            x = model.states(max(self.size.argmaxes))

            def tokens(rows: int, model: Model = model, x: Tensor = x) -> Tensor:
                return torch.cat([model(part).argmax(dim=1) for part in x.split(rows)])

            alone = tokens(first)
            for rows in others:
                share = float((tokens(rows) != alone).double().mean())
                lines.append({"shape": shape.name, "rows": rows, f"differ from {first}": share})
        why = "Weights are random, so near-ties are more frequent than in a real model's text."
        return bool(lines), f"{self._table('argmaxes', lines)}\n\n{why}"

    def passes(self) -> Found:
        """Time passes of random layers by their rows, in a captured CUDA graph and eagerly. The
        rows are those of few sessions that have WIDTH each, and of as many sessions as rows,
        which is what a draft token's row must be compared with."""
        lines, shapes = list[Line](), self.size.shapes
        for shape in shapes:
            model = Model(shape, self.device)
            for rows in self._within(self.size.rows, 1 / len(shapes)):
                alone = {rows} if rows <= MOST_SESSIONS else set[int]()
                for sessions in sorted({max(1, rows // WIDTH), *alone}):
                    graph_s, eager_s = model.times_s(rows, sessions)
                    lines.append({
                        "shape": shape.name, "rows": rows, "sessions": sessions,
                        "ms in a CUDA graph": 1000 * graph_s, "ms eagerly": 1000 * eager_s,
                    })  # fmt: skip
        return bool(lines), self._table("passes", lines)

    def _logits(self, rows: int) -> Tensor:
        return 3 * torch.randn(rows, self.size.vocabulary, device=self.device)

    def _within(self, sizes: Sequence[int], share: float = 1.0) -> Iterator[int]:
        """Yield sizes as long as there is time."""
        began_s = perf_counter()
        for each in sizes:
            if perf_counter() - began_s > share * self.size.limit_s:
                return
            yield each

    def _timed(self, call: Callable[[], object]) -> Line:
        """Return the median time of a call, and the peak of GPU memory that it adds."""
        if self.device != "cuda":
            return {"ms": 1000 * seconds(call, self.device)}
        call()
        torch.cuda.reset_peak_memory_stats()
        before, time_s = torch.cuda.memory_allocated(), seconds(call, self.device)
        peak_mib = (torch.cuda.max_memory_allocated() - before) / 2**20
        return {"ms": 1000 * time_s, "MiB at most": round(peak_mib)}

    def _table(self, name: str, lines: Sequence[Line]) -> str:
        """Keep the figures, and return them as a Markdown table."""
        self.figures[name] = lines
        return of_values(lines)


async def _as_work(part: Callable[[], Found]) -> Found:
    try:
        return part()
    except ModuleNotFoundError as error:
        raise NotRun(f"{error.name} is not installed here.") from error


@dataclass(slots=True)
class Draws:
    """Counts what was drawn, and compares it with the argmax of logits and numpy's noise."""

    count: int = 0
    others: int = 0
    wrong: int = 0

    def add(self, logits: Tensor, noises: Tensor, drawn: Tensor) -> None:
        self.count += len(drawn)
        self.others += int((drawn != (logits + noises).argmax(dim=1)).sum())
        self.wrong += int(far(logits, noises, drawn).sum())

    @property
    def right(self) -> bool:
        return self.count > 0 and self.wrong == 0

    @property
    def figures(self) -> Line:
        names = ("draws", "another argmax", "of them no near-tie")
        return dict(zip(names, (self.count, self.others, self.wrong), strict=True))


def bounds(rows: int) -> list[tuple[int, int]]:
    """Return the first row of each pass, and the one after its last. Passes have WIDTH rows
    each, but for the last one."""
    return [(start, min(start + WIDTH, rows)) for start in range(0, rows, WIDTH)]


class Model:
    """Runs a few layers with random weights, and the head of a model of a shape."""

    def __init__(self, shape: Shape, device: str) -> None:
        self.shape, self._device = shape, device
        wide, kv = shape.heads * shape.head, shape.kv_heads * shape.head
        sizes = (
            (wide + 2 * kv, shape.hidden), (shape.hidden, wide),
            (2 * shape.inner, shape.hidden), (shape.hidden, shape.inner),
        )  # fmt: skip
        self._layers = [
            [self._random(rows, columns) / columns**0.5 for rows, columns in sizes]
            for _ in range(LAYERS)
        ]
        self._head = self._random(shape.vocabulary, shape.hidden) / shape.hidden**0.5
        self._one = self._cache(1)

    def _random(self, *sizes: int) -> Tensor:
        return torch.randn(sizes, device=self._device, dtype=torch.bfloat16)

    def _cache(self, sessions: int) -> Tensor:
        """Return keys and values: bfloat16[2, sessions, kv_heads, CONTEXT, head]."""
        return self._random(2, sessions, self.shape.kv_heads, CONTEXT, self.shape.head)

    def states(self, rows: int) -> Tensor:
        """Return random inputs: bfloat16[rows, hidden]."""
        return self._random(rows, self.shape.hidden)

    def __call__(self, x: Tensor) -> Tensor:
        """Return the logits of rows that all read the same context: bfloat16[rows, V]."""
        return self._logits(self._hidden(x, self._one))

    def _hidden(self, x: Tensor, cache: Tensor) -> Tensor:
        shape, (rows, hidden), sessions = self.shape, x.shape, cache.shape[1]
        wide = shape.heads * shape.head
        for qkv, out, up, down in self._layers:
            q = (rms_norm(x, (hidden,)) @ qkv.T)[:, :wide]
            q = q.view(sessions, rows // sessions, shape.heads, shape.head).transpose(1, 2)
            read = scaled_dot_product_attention(q, cache[0], cache[1], enable_gqa=True)
            x = x + read.transpose(1, 2).reshape(rows, wide) @ out.T
            gate, value = (rms_norm(x, (hidden,)) @ up.T).chunk(2, dim=1)
            x = x + (silu(gate) * value) @ down.T
        return x

    def _logits(self, x: Tensor) -> Tensor:
        return rms_norm(x, x.shape[1:]) @ self._head.T

    def times_s(self, rows: int, sessions: int) -> tuple[float, float]:
        """Return the seconds of a pass of the whole model, in a CUDA graph and eagerly. Each
        session has the same number of rows."""
        x, cache = self.states(rows), self._cache(sessions)
        parts = (lambda: self._hidden(x, cache)), (lambda: self._logits(x))
        scales = self.shape.layers / LAYERS, 1.0
        eager_s = [seconds(part, self._device) for part in parts]
        graph_s = eager_s
        if self._device == "cuda":
            graph_s = [seconds(_captured(part).replay, self._device) for part in parts]
        both = (sum(map(mul, scales, each)) for each in (graph_s, eager_s))
        return next(both), next(both)


def misfit() -> str:
    """Return why torch runs nothing on this host's GPU."""
    try:
        torch.zeros(1, device="cuda")
    except (AssertionError, RuntimeError) as error:  # the former if torch was built without it
        return f"torch {torch.__version__}, for CUDA {torch.version.cuda}: {error}"
    return "torch finds a GPU now, and did not at first."


def _captured(call: Callable[[], object]) -> torch.cuda.CUDAGraph:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph


def far(logits: Tensor, noises: Tensor, drawn: Tensor) -> Tensor:
    """Return True for each row whose drawn token is further behind the best one than noise that
    is MOST_ULP off, and the rounding of sums, can explain.

    logits, noises: float32[n, V]. drawn: int64[n].
    """
    scores = logits + noises
    both = torch.stack([scores.argmax(dim=1), drawn], dim=1)
    off = MOST_ULP * _steps(noises.gather(1, both)) + _ulp(scores.gather(1, both).abs())
    best, own = scores.gather(1, both).unbind(dim=1)
    return best - own > off.sum(dim=1)


def _steps(noises: Tensor) -> Tensor:
    """Return a float32 step of each noise, or of 1 if that is larger."""
    return _ulp(noises.abs().clamp(min=1.0))


def _ulp(values: Tensor) -> Tensor:
    """Return the distance from each value to the next larger one."""
    return torch.nextafter(values, torch.full_like(values, torch.inf)) - values


def seconds(call: Callable[[], object], device: str) -> float:
    """Return the median seconds of REPEATS calls after a first one."""
    settle: Callable[[], object] = torch.cuda.synchronize if device == "cuda" else lambda: None
    times = []
    for _ in range(1 + REPEATS):
        settle()
        began_s = perf_counter()
        call()
        settle()
        times.append(perf_counter() - began_s)
    return median(times[1:])


def _version(package: str) -> str:
    with suppress(ModuleNotFoundError):
        return version(package)
    return "missing"


def main() -> None:
    """Measure this host's GPU without vLLM."""
    options = ArgumentParser(description=main.__doc__)
    options.add_argument("--out", type=Path, default=REPORT, help="Where the report goes.")
    options.add_argument("--only", default="", help="The one part to run.")
    out, only = (chosen := options.parse_args()).out, chosen.only
    device = "cuda" if torch.cuda.is_available() else "cpu"
    notes = () if device == "cuda" else ("> **There is no GPU here: this is the small form.**",)
    check = Check(notes, "GPU kernels", out)
    with torch.inference_mode():
        kernels = Kernels(ON_GPU if device == "cuda" else ON_CPU, device)
        asyncio.run(kernels.run(check, only))
    sys.stdout.write(check.finish())
    sys.exit(check.failed)


if __name__ == "__main__":
    main()
