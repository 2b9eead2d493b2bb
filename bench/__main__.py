"""`python -m bench`: measure every arm in one run, report it, record traces, replay them."""

from __future__ import annotations

import typer

from bench.options import VERIFIER_OPTIONS
from bench.pace.command import host, standin
from bench.recording import record
from bench.report import report
from bench.run.command import run
from bench.simulator.command import simulate
from bench.simulator.pace import pace

app = typer.Typer(
    help="Measure what PicoSpec gains, and what it costs.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command(context_settings=VERIFIER_OPTIONS)(run)
for command in (report, record, simulate, pace, host, standin):
    app.command()(command)

if __name__ == "__main__":
    app(prog_name="python -m bench")
