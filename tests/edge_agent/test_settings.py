"""The edge's settings: where they come from, and which are errors."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from picospec.edge_agent.settings import load


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "edge.toml"
    path.write_text(text)
    return path


def test_the_command_line_wins_over_the_environment_and_that_over_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(
        tmp_path, 'port = 1\nslots = 2\nfill = "never"\n[drafting]\nflush_tokens = 3\n'
    )
    monkeypatch.setenv("PICOSPEC_EDGE__SLOTS", "3")
    monkeypatch.setenv("PICOSPEC_EDGE__PORT", "2")
    monkeypatch.setenv("PICOSPEC_EDGE__DRAFTING__MIN_SURVIVAL", "0.4")

    settings = load(path, {}, {"port": 4})

    assert (settings.port, settings.slots, settings.fill) == (4, 3, "never")
    assert settings.draft_settings.flush_tokens == 3
    assert settings.draft_settings.min_survival == 0.4


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("ports = 1", "ports"),
        ("[drafting]\nmin_surviva = 1", "min_surviva"),
        ("port = 0", "port"),
        ('drafter = "noise"', "drafter"),
        ('verifier_url = "ftp://x"', "verifier_url"),
        ('verifier_urls = ["http://a", "ftp://x"]', "verifier_urls"),
        ('verifier_urls = ["http://a", "http://a"]', "verifier_urls"),
        ('verifier_url = "http://a"\nverifier_urls = ["http://b"]', "verifier_urls"),
        ('verifier_url = "http://a/?key=b"', "verifier_url"),
        ('verifier_urls = ["http://a/#b"]', "verifier_urls"),
    ],
)
def test_a_setting_that_is_misspelt_or_out_of_range_is_named(
    tmp_path: Path, text: str, named: str
) -> None:
    with pytest.raises(ValidationError, match=named):
        load(written(tmp_path, text), {}, {})


@pytest.mark.parametrize("url", ["http://user:s3cret@a", "http://s3cret@a", "http://:s3cret@a"])
@pytest.mark.parametrize("field", ["verifier_url", "verifier_urls"])
def test_a_secret_in_an_address_is_an_error_that_does_not_show_it(field: str, url: str) -> None:
    with pytest.raises(ValidationError, match=f"{field}(.|\n)*PICOSPEC_VERIFIER_KEY") as raised:
        load(None, {}, {field: url if field == "verifier_url" else [url]})

    assert "s3cret" not in str(raised.value)


@pytest.mark.parametrize("field", ["api_keys", "verifier_key"])
def test_keys_do_not_belong_in_files(tmp_path: Path, field: str) -> None:
    with pytest.raises(ValueError, match=f"keep {field} out of files"):
        load(written(tmp_path, f'{field} = "secret"'), {}, {})


def test_keys_come_from_the_environment_and_are_not_shown() -> None:
    environ = {"PICOSPEC_API_KEYS": "key1, key2,", "PICOSPEC_VERIFIER_KEY": "three"}

    settings = load(None, environ, {})

    assert [key.get_secret_value() for key in settings.api_keys] == ["key1", "key2"]
    assert settings.key_for(settings.verifiers[0]) == "three"
    assert "key1" not in repr(settings)


@pytest.mark.parametrize(
    ("url", "shown"), [("http://127.0.0.1:9000", "one"), ("https://example.org", None)]
)
def test_clients_keys_are_shown_to_no_verifier_elsewhere(url: str, shown: str | None) -> None:
    settings = load(None, {"PICOSPEC_API_KEYS": "one"}, {"verifier_url": url})

    assert settings.key_for(settings.verifiers[0]) == shown


@pytest.mark.parametrize(
    ("text", "named", "expected"),
    [
        ("", {}, ["http://127.0.0.1:9000/"]),
        ('verifier_url = "http://a"', {}, ["http://a/"]),
        ('verifier_urls = ["http://a", "https://b"]', {}, ["http://a/", "https://b/"]),
        (
            'verifier_url = "http://a"',
            {"verifier_url": None, "verifier_urls": ["http://c"]},
            ["http://c/"],
        ),
    ],
)
def test_verifiers_are_one_or_several(
    tmp_path: Path, text: str, named: dict[str, object], expected: list[str]
) -> None:
    settings = load(written(tmp_path, text), {}, named)

    assert [str(url) for url in settings.verifiers] == expected


def test_the_shipped_file_leaves_the_verifier_to_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PICOSPEC_EDGE__VERIFIER_URL", "https://gpu")

    settings = load(Path("configs/edge.toml"), {}, {})

    assert [str(url) for url in settings.verifiers] == ["https://gpu/"]
