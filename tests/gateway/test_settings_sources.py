"""Where a service's settings come from, whatever the service."""

from __future__ import annotations

from pathlib import Path

import pytest

from picospec.gateway.hosting.settings_sources import ServiceSettings


def test_a_file_that_is_not_there_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.toml"):
        ServiceSettings.load(tmp_path / "nowhere.toml", {}, {})


def test_a_file_that_is_there_is_read(tmp_path: Path) -> None:
    (tmp_path / "some.toml").write_text('host = "10.0.0.1"\n')

    assert ServiceSettings.load(tmp_path / "some.toml", {}, {}).host == "10.0.0.1"
    assert ServiceSettings.load(None, {}, {}).host == "127.0.0.1"
