"""`python -m verifier`: read the settings and serve, or become vLLM's server."""

from __future__ import annotations

import os
import sys
import tomllib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import typer
from fastapi import FastAPI

from gateway.hosting.server import serve
from gateway.hosting.settings import drop_links, wrong
from gateway.hosting.strangers import check_listening
from verifier.options import llama_options
from verifier.settings import VerifierSettings, load

app = typer.Typer(add_completion=False, pretty_exceptions_show_locals=False)
OTHERS: Final = dict(
    allow_extra_args=True, ignore_unknown_options=True, help_option_names=["-h", "--help"]
)


@app.command(context_settings=OTHERS)
def main(
    context: typer.Context,
    config: Annotated[Path | None, typer.Option(help="Settings file (TOML).")] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[
        int | None, typer.Option(envvar="VERIFIER_PORT", help="Port to listen on.")
    ] = None,
    target: Annotated[
        Literal["llama", "vllm"] | None, typer.Option(help="What runs the model.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="A name, owner/repo, or a path.")] = None,
) -> None:
    """Check drafts against the large model.

    Any other setting: --NAME VALUE, or --TABLE.NAME VALUE, as in --llama.slots 4;
    picospec config show verifier lists all.

    As at llama-server: -ngl --gpu-layers, -sm --split-mode, -ts --tensor-split, -mg --main-gpu,
    -ot --override-tensor, -ctk --cache-type-k, -ctv --cache-type-v, -fa --flash-attn,
    -c --ctx-size (of each slot), -np --parallel, -t --threads; and --head mtp, --exact near or
    strict.
    """
    named = {"host": host, "port": port, "target": target, "model": model}
    try:
        overrides: dict[str, Any] = {
            name: value for name, value in named.items() if value is not None
        }
        llama, others = llama_options(context.args)
        overrides |= nested(others)
        if llama:
            overrides["llama"] = {**overrides.get("llama", {}), **llama}
        settings = load(config, os.environ, overrides)
        check_listening(settings)
    except (ValueError, OSError) as error:
        wrong(error)
    if settings.target == "vllm":
        from verifier.vllm_target.launching import launch

        launch(settings, config, overrides)
    serve(settings, partial(_app, settings))


def _app(settings: VerifierSettings) -> FastAPI:
    """Return the app; models and llama.cpp are loaded in the worker alone, never before."""
    from local_models.errors import ModelError
    from verifier.app import build, make_target

    try:
        return build(settings, partial(make_target, settings))
    except (ModelError, OSError) as error:
        sys.exit(f"verifier: {error}")


def nested(arguments: Sequence[str]) -> dict[str, Any]:
    """Return --a.b VALUE and --c VALUE as {"a": {"b": value}, "c": value}.

    Values are read as TOML, or else taken as text. Raises ValueError.
    """
    result: dict[str, Any] = {}
    names = iter(arguments)
    for name in names:
        option, equals, value = name.partition("=")
        if not option.startswith("--") or (not equals and (value := next(names, "")) == ""):
            raise ValueError(f"{name}: expected --NAME VALUE")
        *tables, key = option.removeprefix("--").split(".")
        table = result
        for step in tables:
            table = table.setdefault(step.replace("-", "_"), {})
        table[key.replace("-", "_")] = _read(value)
    return result


def _read(value: str) -> object:
    try:
        return tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return value


if __name__ == "__main__":
    drop_links(os.environ)
    app(prog_name="picospec verifier")
