"""The table of speed-ups that `picospec bench run` shows while it measures."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from bench.data.results import Row


def table(found: Sequence[Row]) -> Table:
    """Return arms and temperatures down, families and links across.

    A star marks a cell in which some text differs from cloud's.
    """
    columns = list(dict.fromkeys((r.family, r.rtt_ms, r.rate_mbit) for r in found))
    shown = Table("arm", "T", *(_heading(*column) for column in columns))
    cells = {(r.arm, r.temperature, r.family, r.rtt_ms, r.rate_mbit): _cell(r) for r in found}
    for arm, temperature in dict.fromkeys((r.arm, r.temperature) for r in found):
        line = (cells.get((arm, temperature, *column), "") for column in columns)
        shown.add_row(arm, f"{temperature:g}", *line)
    return shown


def _heading(family: str, rtt_ms: float, rate_mbit: float | None) -> str:
    return f"{family} {rtt_ms:g} ms" + ("" if rate_mbit is None else f" {rate_mbit:g} Mbit/s")


def _cell(row: Row) -> str:
    if row.arm == "cloud":
        return f"{row.tokens_per_s:.1f} tokens/s"
    return f"{row.speedup_vs_cloud:.2f}" + ("" if row.identical_to_cloud else " *")
