"""Runs vLLM's own server without our plugin, for the arms of bench.run.rivals.

    python -m bench.run.stock_vllm --model DIR --speculation JSON [--vllm.NAME VALUE]

The verifier's engine and this one start in the same environment with the same options, so
that only speculation differs. Options that are not vLLM's only apply to the verifier.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Annotated

import typer

from bench import options
from gateway.hosting.parent_death import program
from verifier.__main__ import nested
from verifier.settings import VerifierSettings
from verifier.vllm_target.launching import defaults, flags, module
from verifier.vllm_target.launching import options as options_of
from verifier.vllm_target.runner_choice import NAME


def main(
    context: typer.Context, model: Annotated[str, typer.Option()],
    speculation: Annotated[str, typer.Option(help="vLLM's speculative_config; {}: none.")],
    host: Annotated[str, typer.Option()], port: Annotated[int, typer.Option()],
) -> None:  # fmt: skip
    """Serve vLLM's OpenAI API."""
    table = {**nested(context.args).get("vllm", {}), "host": host, "port": port}
    chosen = options_of(VerifierSettings(target="vllm", model=model, vllm=table))
    if speculating := json.loads(speculation):
        chosen["speculative_config"] = speculating
        chosen["per_request_spec_decode_metrics"] = "summary"
    command = [sys.executable, *program(module()[0]), *module()[1:], *flags(chosen)]
    environment = {**defaults(), **os.environ}
    if plugins := environment.get("VLLM_PLUGINS"):
        others = (each for each in plugins.split(",") if each != NAME)
        environment["VLLM_PLUGINS"] = ",".join(others)
    os.execve(command[0], command, environment)


if __name__ == "__main__":
    app = typer.Typer()
    app.command(context_settings=options.VERIFIER_OPTIONS)(main)
    app()
