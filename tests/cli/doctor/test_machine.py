"""What the doctor finds on this machine, and what it advises."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from picospec.cli.doctor import (
    Finding,
    check_cache,
    check_engine,
    check_gpu,
    check_models,
    check_port,
    report,
)
from picospec.models.llama_cpp.library import Library
from picospec.models.store import open_store
from tests.cli.screen import Screen


def test_an_engine_that_cannot_be_imported_fails_with_its_reason() -> None:
    broken = Library("no_such_engine")

    finding = check_engine(lambda: broken.llama_decode)

    assert not finding.ok
    assert "not installed" in finding.found
    assert "pip install 'picospec[llama]'" in finding.remedy
    assert check_engine(lambda: broken.llama_decode, needed=False).ok


def test_a_cache_that_is_a_file_fails(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("")

    assert check_cache(tmp_path / "fresh").ok
    assert not check_cache(tmp_path / "cache").ok


@pytest.mark.parametrize("name", ["smollm2", "no-such-model"])
def test_a_model_that_is_not_here_fails_and_names_the_pull(tmp_path: Path, name: str) -> None:
    store = open_store({"PICOSPEC_CACHE": str(tmp_path)})

    finding = check_models(store, name)

    assert not finding.ok
    assert finding.remedy == f"picospec models pull {name}"


def test_what_need_not_be_here_is_well_until_it_is_damaged(tmp_path: Path) -> None:
    store = open_store({"PICOSPEC_CACHE": str(tmp_path)})
    missing = check_models(store, "smollm2-135m", needed=False)
    names, blobs = tmp_path / "models" / "names", tmp_path / "models" / "blobs"
    names.mkdir(parents=True)
    blobs.mkdir()
    blob = blobs / store.catalogue.models["smollm2-135m"].sha256
    blob.write_bytes(b"damaged")
    (names / "smollm2-135m.gguf").symlink_to(blob)

    damaged = check_models(store, "smollm2-135m", needed=False)

    assert missing.ok
    assert "not here" in missing.found
    assert not damaged.ok


def test_a_port_held_by_a_stranger_fails_and_names_the_way_out() -> None:
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        port = int(stranger.getsockname()[1])
        stranger.close()
        free = check_port("edge", port, "EDGE_PORT")
    with socket.socket() as stranger:
        stranger.bind(("127.0.0.1", 0))
        port = int(stranger.getsockname()[1])
        held = check_port("edge", port, "EDGE_PORT")

    assert free.ok
    assert not held.ok
    assert "EDGE_PORT" in held.remedy


@pytest.mark.parametrize(
    ("gpu", "supported", "ok"),
    [
        (None, False, True),
        (("CUDA", "-DGGML_CUDA=on"), True, True),
        (("CUDA", "-DGGML_CUDA=on"), False, False),
    ],
)
def test_a_gpu_that_the_build_does_not_use_fails_and_names_the_build(
    gpu: tuple[str, str] | None, supported: bool, ok: bool
) -> None:
    finding = check_gpu(gpu, supported)

    assert finding.ok is ok
    assert ok or "-DGGML_CUDA=on" in finding.remedy


def test_a_report_is_well_only_when_every_finding_is() -> None:
    screen = Screen()
    good, bad = Finding("a", True, "fine", "unused"), Finding("b", False, "broken", "mend it")

    assert report([good], screen)
    assert not report([good, bad], screen)
    assert "mend it" in screen.text
    assert "unused" not in screen.text
