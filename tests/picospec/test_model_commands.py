"""`picospec models`, as a user types it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path

import pytest
from typer.testing import CliRunner

from local_models.store import open_store
from picospec.model_commands import models_app
from tests.local_models.hub_server import FakeHub


@pytest.fixture(autouse=True)
def empty_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PICOSPEC_CACHE", str(tmp_path))
    monkeypatch.setenv("PICOSPEC_CONFIG_DIR", str(tmp_path))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("PICOSPEC_MODEL_SOURCES", "folder")
    monkeypatch.setenv("COLUMNS", "200")


def run(*arguments: str) -> str:
    result = CliRunner().invoke(models_app, arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_a_list_cuts_no_path_and_is_there_for_programs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    file = tmp_path / "models" / "names" / "smollm2-135m.gguf"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"x")

    listed, told = run("list"), json.loads(run("list", "--json"))

    assert str(file) in listed.split()
    assert {"name": "smollm2-135m", "path": str(file), "bytes": 1} in told["models"]
    assert told["pairs"]["smollm2"]["target"] == "smollm2-135m-q8_0"


@pytest.mark.system
@pytest.mark.parametrize(
    ("command", "reason"),
    [
        ("pull gpt", "no model 'gpt'"),
        ("pull smollm2", "no folder is set"),
        ("verify smollm2", "models pull smollm2"),
        ("pull nobody/nothing", "nobody/nothing: "),
        ("add smollm2 o/toy", "built-in"),
    ],
)
def test_what_fails_is_one_line_and_an_exit_code(command: str, reason: str) -> None:
    result = CliRunner().invoke(models_app, command.split())

    assert result.exit_code == 1
    assert reason in result.stderr
    assert "Traceback" not in result.stderr


def test_a_settings_file_names_the_sources_unless_the_environment_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "local.toml"
    file.write_text('[models]\nsources = "usb"\n')
    pull = ["pull", "--config", str(file), "smollm2"]

    assert "no folder is set" in CliRunner().invoke(models_app, pull).stderr
    monkeypatch.delenv("PICOSPEC_MODEL_SOURCES")
    assert "no ['usb']" in CliRunner().invoke(models_app, pull).stderr
    file.write_text('[models]\nsource = "hub"\n')
    assert "[models] has `sources`" in CliRunner().invoke(models_app, pull).stderr


def test_pruning_tells_what_is_free_again(tmp_path: Path) -> None:
    begun = tmp_path / "models" / "partial" / "unknown"
    begun.parent.mkdir(parents=True)
    begun.write_bytes(bytes(10_000_000))

    assert "0.01 GB" in run("prune")
    assert not begun.exists()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    files = {"toy-Q8_0.gguf": b"target", "toy-Q4_0.gguf": b"draft"}
    with FakeHub({"o/toy-GGUF": files}).running() as running:
        monkeypatch.setenv("HF_ENDPOINT", running.endpoint)
        monkeypatch.setenv("PICOSPEC_MODEL_SOURCES", "hub")
        yield running


@pytest.mark.system
@pytest.mark.usefixtures("hub")
def test_an_added_model_has_the_hubs_hash_is_pulled_by_its_name_and_paired(
    tmp_path: Path,
) -> None:
    run("add", "toy", "o/toy-GGUF", "--draft-for", "smollm2", "--draft-for", "qwen2.5-coder")

    catalogue = open_store(os.environ).catalogue
    assert catalogue.models["toy"].file == "toy-Q4_0.gguf"
    assert catalogue.models["toy"].sha256 == sha256(b"draft").hexdigest()
    assert catalogue.drafts_of("smollm2-135m")[-1] == "toy"
    listed = run("list").splitlines()
    names = {word for line in listed for word in line.split()[:1]}
    assert {"toy", "smollm2-135m-q8_0"} <= names
    assert "pair smollm2-135m-q8_0+toy: toy drafts for smollm2-135m-q8_0" in listed
    assert Path(run("pull", "toy").strip()).read_bytes() == b"draft"
    assert "toy is as it should be" in run("verify", "toy")


@pytest.mark.system
@pytest.mark.usefixtures("hub")
def test_a_removed_model_is_gone_with_its_files_entry_and_pairs(tmp_path: Path) -> None:
    run("add", "toy", "o/toy-GGUF", "--draft-for", "smollm2")
    run("pull", "toy")
    run("pull", "o/toy-GGUF", "--as", "draft")
    run("pull", "o/toy-GGUF")

    run("remove", "toy")

    assert "toy" not in (tmp_path / "models.toml").read_text()
    blobs = tmp_path / "models" / "blobs"
    assert {blob.read_bytes() for blob in blobs.iterdir()} == {b"draft", b"target"}
    run("remove", "o/toy-GGUF")
    assert not list(blobs.iterdir())
    assert "o/toy-GGUF" not in run("list")


def test_files_and_links_of_the_users_own_are_added_and_never_deleted(tmp_path: Path) -> None:
    file, link, lost = (tmp_path / f"{name}.gguf" for name in ("real", "link", "lost"))
    file.write_bytes(b"GGUF")
    link.symlink_to(file)
    lost.symlink_to(tmp_path / "gone.gguf")

    for each in (file, link):
        run("add", "mine", str(each))
        assert run("pull", "mine").strip() == str(each)
        for name in ("mine", str(each)):
            run("verify", name)
            run("remove", name)
    run("remove", str(lost))

    assert link.read_bytes() == file.read_bytes() == b"GGUF"
    assert lost.is_symlink()


@pytest.mark.system
@pytest.mark.usefixtures("hub")
def test_a_name_added_again_means_its_present_model_and_is_removed_with_all_it_had(
    tmp_path: Path,
) -> None:
    run("add", "toy", "o/toy-GGUF:Q8_0")
    run("pull", "toy")

    run("add", "toy", "o/toy-GGUF:Q4_0")

    assert CliRunner().invoke(models_app, ["verify", "toy"]).exit_code == 1
    assert Path(run("pull", "toy").strip()).read_bytes() == b"draft"
    run("verify", "toy")
    run("remove", "toy")
    assert not list((tmp_path / "models" / "blobs").iterdir())


@pytest.mark.system
@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (lambda blob: blob.write_bytes(b"damaged"), "pull it again"),
        (Path.unlink, "o/toy-GGUF is not here"),
    ],
    ids=["damaged", "lost"],
)
def test_a_damaged_or_lost_file_of_the_hub_is_gone_until_it_is_pulled_again(
    harm: Callable[[Path], object], reason: str
) -> None:
    path = Path(run("pull", "o/toy-GGUF").strip())
    harm(path.resolve())

    for said in (reason, "o/toy-GGUF is not here"):
        result = CliRunner().invoke(models_app, ["verify", "o/toy-GGUF"])
        assert result.exit_code == 1
        assert said in result.stderr

    assert "o/toy-GGUF" not in run("list")
    assert path == Path(run("pull", "o/toy-GGUF").strip())
    assert path.read_bytes() == b"target"


@pytest.mark.system
@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize("name", ["toy", "o/toy-GGUF", "o/toy-GGUF:Q4_0"])
def test_what_a_pull_has_begun_is_removed_with_its_model(tmp_path: Path, name: str) -> None:
    run("add", "toy", "o/toy-GGUF:Q4_0")
    partial = tmp_path / "models" / "partial"
    partial.mkdir(parents=True)
    begun, others = partial / sha256(b"draft").hexdigest(), partial / sha256(b"x").hexdigest()
    begun.write_bytes(b"dr")
    others.write_bytes(b"of another model")

    run("remove", name)

    assert list(partial.iterdir()) == [others]
