"""An edge that drafts in rounds, as published systems do (bench.round_policy), or uselessly.

python -m picospec.bench.run.rounds sync:4 --verifier-url ... --draft-model ...
"""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer
from pydantic import ValidationError

from picospec.bench.round_policy import RoundPolicy
from picospec.bench.run.useless_drafter import make_drafter
from picospec.edge_agent.__main__ import serve
from picospec.edge_agent.settings import load


def main(
    rounds: Annotated[str, typer.Argument(help="sync:G, paper:G or useless.")],
    host: Annotated[str, typer.Option()],
    port: Annotated[int, typer.Option()],
    verifier_url: Annotated[str, typer.Option()],
    draft_model: Annotated[str, typer.Option()],
) -> None:
    """Serve the OpenAI API without lookup; other settings come from the environment."""
    named: dict[str, object] = {
        "host": host, "port": port, "verifier_url": verifier_url, "draft_model": draft_model,
        "lookup": False,
    }  # fmt: skip
    try:
        if rounds == "useless":
            serve(load(None, os.environ, named), None, make_drafter)
        else:
            serve(load(None, os.environ, named), RoundPolicy.parse(rounds))
    except (ValidationError, ValueError) as error:
        sys.exit(f"settings: {error}")


if __name__ == "__main__":
    typer.run(main)
