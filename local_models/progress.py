"""Shows the progress of fetching a model: as a bar on a terminal, or as lines in a log."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, TextColumn, TransferSpeedColumn
from rich.progress import Progress as Bars

Progress = Callable[[str, int, int], None]
"""A Progress is called with an activity, the bytes done, and the total bytes (0 if unknown).
One without any bytes is a notice, which stays in sight."""


@contextmanager
def progress_bar(console: Console, subject: str) -> Iterator[Progress]:
    """Yield a function that shows the progress of `subject`."""
    if not console.is_terminal:
        yield _lines(console, subject)
        return
    columns = BarColumn(), DownloadColumn(), TransferSpeedColumn()
    text = TextColumn("{task.description}")
    with Bars(text, *columns, console=console, transient=True) as bars:
        task = bars.add_task(subject, total=None, visible=False)

        def show(what: str, done: int, total: int) -> None:
            described = f"{subject}: {what}"
            if not done and not total:
                bars.console.print(described, soft_wrap=True, highlight=False, markup=False)
                return
            bars.update(
                task, description=described, completed=done, total=total or None, visible=True
            )

        yield show


def _lines(console: Console, subject: str) -> Progress:
    """Return a function that prints a line at the beginning and each tenth of an activity."""
    shown = ("", 0)

    def show(what: str, done: int, total: int) -> None:
        nonlocal shown
        tenths = 10 * done // total if total else 0
        if (what, tenths) != shown:
            shown = (what, tenths)
            part = f" {tenths * 10} % of {total / 1e9:.2f} GB" if total else ""
            console.print(f"{subject}: {what}{part}", soft_wrap=True, highlight=False)

    return show
