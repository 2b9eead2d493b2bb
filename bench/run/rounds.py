"""An edge that drafts in rounds, as published systems do: see bench.round_policy.

python -m bench.run.rounds sync:4 --verifier-url ... --draft-model ...
"""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer
from pydantic import ValidationError

from bench.round_policy import RoundPolicy
from edge_agent.__main__ import serve
from edge_agent.settings import load


def main(
    rounds: Annotated[str, typer.Argument(help="sync:G or paper:G.")],
    host: Annotated[str, typer.Option()],
    port: Annotated[int, typer.Option()],
    verifier_url: Annotated[str, typer.Option()],
    draft_model: Annotated[str, typer.Option()],
) -> None:
    """Serve the OpenAI API, drafting in rounds; other settings come from the environment."""
    named = {
        "host": host, "port": port, "verifier_url": verifier_url, "draft_model": draft_model,
        "lookup": False,
    }  # fmt: skip
    try:
        policy = RoundPolicy.parse(rounds)
        settings = load(None, os.environ, named)
    except (ValidationError, ValueError) as error:
        sys.exit(f"settings: {error}")
    serve(settings, policy)


if __name__ == "__main__":
    typer.run(main)
