"""A name in the store is a complete, checked file, or does not exist."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest

from picospec.models import blobs
from picospec.models.blobs import Blobs
from picospec.models.catalogue import Catalogue, ModelFile, Pair, Variant
from picospec.models.errors import (
    CannotQuantise,
    ModelError,
    NotPulled,
    SourceFailed,
    UnknownModel,
    WrongHash,
)
from picospec.models.hub import Download, Folder, Source, Wheels
from picospec.models.llama_cpp.library import quantise
from picospec.models.store import Found, Store, open_store
from tests.models.sources import CONTENT, Fake, NoHub, silent

Make = Callable[..., Store]


@pytest.fixture
def make(model: ModelFile, tmp_path: Path) -> Make:
    catalogue = Catalogue(
        models={"toy": model},
        variants={"toy-q4": Variant("toy", "Q4_0"), "toy-q8": Variant("toy", "Q8_0")},
        pairs={"toys": Pair("toy-q4", "toy-q8")},
    )
    return lambda *sources: Store(tmp_path / "store", catalogue, sources, NoHub())


@pytest.fixture
def quick_variants(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a toy's quantisation of its bytes and the quantisation's name."""

    def append(source: Path, target: Path, kind: str) -> None:
        target.write_bytes(source.read_bytes() + kind.encode())

    monkeypatch.setattr(blobs, "quantise", append)


def test_a_pulled_model_has_its_bytes_and_is_verified(make: Make) -> None:
    store = make(Fake(CONTENT))

    (path,) = store.pull("toy", silent)

    assert path.read_bytes() == CONTENT
    assert store.find("toy", "target") == Found("toy", path)
    store.verify("toy")


def test_a_second_pull_asks_no_source(make: Make) -> None:
    source = Fake(CONTENT)
    make(source).pull("toy", silent)

    make(source).pull("toy", silent)

    assert source.calls == 1


def test_a_failing_source_is_followed_by_the_next(make: Make) -> None:
    broken: list[Source] = [Fake(SourceFailed("gone")), Fake(b"some other file")]

    (path,) = make(*broken, Fake(CONTENT)).pull("toy", silent)

    assert path.read_bytes() == CONTENT


def test_when_all_sources_fail_every_reason_is_given(make: Make) -> None:
    store = make(Fake(SourceFailed("no route")), Fake(SourceFailed("no wheel")))

    with pytest.raises(SourceFailed, match=r"no route.*no wheel"):
        store.pull("toy", silent)


def test_an_interrupted_pull_of_wheels_is_resumed_and_tidied(
    make: Make, download: Download, tmp_path: Path
) -> None:
    kept = tmp_path / "store" / "wheels"
    asked: list[str] = []

    def interrupted(requirement: str, folder: Path) -> None:
        asked.append(requirement)
        if len(asked) == 2:
            raise KeyboardInterrupt
        download(requirement, folder)

    with pytest.raises(KeyboardInterrupt):
        make(Wheels(kept, interrupted)).pull("toy", silent)
    (path,) = make(Wheels(kept, interrupted)).pull("toy", silent)

    assert path.read_bytes() == CONTENT
    assert asked == ["a==1.0", "b==1.0", "b==1.0"]
    assert not list(kept.iterdir())


@pytest.mark.usefixtures("quick_variants")
def test_a_pair_is_its_two_variants(make: Make) -> None:
    store = make(Fake(CONTENT))

    store.pull("toys", silent)

    assert store.find("toys", "draft").path.read_bytes() == CONTENT + b"Q4_0"
    assert store.find("toys", "target").path.read_bytes() == CONTENT + b"Q8_0"
    store.verify("toys")


@pytest.mark.usefixtures("quick_variants")
@pytest.mark.parametrize("first", ["toy-q4", "toy"])
def test_a_name_given_to_another_model_brings_its_weights_and_its_variants(
    make: Make, tmp_path: Path, first: str
) -> None:
    make(Fake(CONTENT)).pull("toy-q4", silent)
    other = ModelFile("b.gguf", sha256=sha256(b"other").hexdigest(), repository="o/b")
    catalogue = Catalogue(models={"toy": other}, variants={"toy-q4": Variant("toy", "Q4_0")})
    store = Store(tmp_path / "store", catalogue, [Fake(b"other")], NoHub())

    for name in ("toy", "toy-q4"):
        with pytest.raises(NotPulled):
            store.verify(name)
    store.pull(first, silent)
    store.pull("toy-q4", silent)

    assert store.find("toy", "target").path.read_bytes() == b"other"
    assert store.find("toy-q4", "draft").path.read_bytes() == b"otherQ4_0"
    assert len(list((store.root / "blobs").iterdir())) == 2


def test_a_variant_that_cannot_be_written_has_no_name(make: Make) -> None:
    store = make(Fake(CONTENT))

    with pytest.raises(ModelError, match="Q4_0"):
        store.pull("toy-q4", silent)

    assert list(store.root.rglob("*.gguf")) == [store.root / "names" / "toy.gguf"]


@pytest.mark.usefixtures("quick_variants")
@pytest.mark.parametrize("name", ["toy", "toy-q4"])
def test_a_changed_file_is_found_deleted_and_pulled_again(make: Make, name: str) -> None:
    store = make(Fake(CONTENT))
    (path,) = store.pull(name, silent)
    path.resolve().write_bytes(b"x")

    with pytest.raises(WrongHash, match="pull it again"):
        store.verify(name)
    store.pull(name, silent)

    store.verify(name)


def test_the_error_for_a_missing_file_names_the_command_that_pulls_it(make: Make) -> None:
    with pytest.raises(NotPulled, match="pull toy"):
        make().find("toy", "draft")
    with pytest.raises(UnknownModel):
        make().find("toys-of-others", "draft")


def test_entries_show_which_files_are_here(make: Make) -> None:
    store = make(Fake(CONTENT))
    store.pull("toy", silent)

    here = {entry.name: entry.path for entry in store.entries()}

    assert here == {"toy": store.find("toy", "draft").path, "toy-q4": None, "toy-q8": None}


def test_the_environment_chooses_the_place_and_the_sources(tmp_path: Path) -> None:
    store = open_store({"PICOSPEC_CACHE": str(tmp_path), "PICOSPEC_MODEL_SOURCES": "folder"})

    assert store.root == tmp_path / "models"
    with pytest.raises(SourceFailed, match="no folder is set"):
        store.pull("smollm2-135m", silent)


def test_an_unknown_source_is_refused() -> None:
    with pytest.raises(SourceFailed, match="usb"):
        open_store({"PICOSPEC_MODEL_SOURCES": "usb"})


def test_a_folder_is_a_source_like_any_other(
    make: Make, model: ModelFile, tmp_path: Path
) -> None:
    store = make(Folder(tmp_path))
    with pytest.raises(SourceFailed, match="does not exist"):
        store.pull("toy", silent)
    (tmp_path / model.file).write_bytes(CONTENT)

    (path,) = store.pull("toy", silent)

    assert path.read_bytes() == (tmp_path / model.file).read_bytes() == CONTENT


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


def test_a_file_that_cannot_be_quantised_leaves_nothing(tmp_path: Path) -> None:
    source = tmp_path / "a.gguf"
    source.write_bytes(b"not a gguf")

    with pytest.raises(CannotQuantise):
        quantise(source, tmp_path / "b.gguf", "Q4_0")

    assert list(tmp_path.iterdir()) == [source]
