"""`picospec keys add` prints a key that the file then admits."""

from __future__ import annotations

from pathlib import Path

from typer.testing import CliRunner

from picospec.cli.main import app
from picospec.gateway.tenants.keys import KeyLimits, digest_of, read_keys


def test_the_key_that_is_printed_is_the_one_whose_hash_is_in_the_file(tmp_path: Path) -> None:
    file = tmp_path / "keys.toml"
    limits = ["--sessions", "2", "--tokens-a-minute", "900"]

    printed = CliRunner().invoke(app, ["keys", "add", "ann", str(file), *limits])

    (key,) = read_keys(file)
    assert (printed.exit_code, key.name) == (0, "ann")
    assert digest_of(printed.output.strip().encode()) == key.digest
    assert file.stat().st_mode & 0o777 == 0o600
    assert key.limits == KeyLimits(sessions=2, tokens_a_minute=900)
