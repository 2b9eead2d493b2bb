"""The folder of blobs as two processes use it."""

from __future__ import annotations

from pathlib import Path

import pytest

from picospec.models.errors import SourceFailed
from picospec.models.fetching import blobs
from picospec.models.fetching.blobs import Blobs


def test_a_pull_waits_for_another_one_but_not_forever(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(blobs, "LOCK_S", 0.1)
    monkeypatch.setattr(blobs, "POLL_S", 0.02)
    first, second = Blobs(tmp_path, ()), Blobs(tmp_path, ())

    with (
        first.changing(),
        pytest.raises(SourceFailed, match="another process has been pulling"),
        second.changing(),
    ):
        pass

    with second.changing():
        pass
