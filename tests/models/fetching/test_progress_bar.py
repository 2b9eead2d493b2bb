from __future__ import annotations

import io

from rich.console import Console

from picospec.models.hub import progress_bar


def test_a_log_gets_a_line_for_each_activity_and_each_tenth() -> None:
    text = io.StringIO()

    with progress_bar(Console(file=text), "qwen") as show:
        for done in range(0, 2_000_000_001, 10_000_000):
            show("downloading", done, 2_000_000_000)
        show("checking", 0, 0)

    lines = text.getvalue().splitlines()
    assert lines[:2] == [
        "qwen: downloading 0 % of 2.00 GB",
        "qwen: downloading 10 % of 2.00 GB",
    ]
    assert lines[-1] == "qwen: checking"
    assert len(lines) == 12
