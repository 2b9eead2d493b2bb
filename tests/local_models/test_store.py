"""A name of the catalogue is a complete, checked file in the store, or does not exist."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest
from msgspec import structs

from local_models import blobs, file_hashes
from local_models.blobs import Blobs
from local_models.catalogue import (
    Catalogue,
    Family,
    ModelFile,
    Pair,
    Variant,
    parse_catalogue,
    shipped,
)
from local_models.choosing import fitting_draft
from local_models.errors import (
    InvalidCatalogue,
    ModelError,
    NotPulled,
    SourceFailed,
    UnknownModel,
    Unreachable,
    WrongHash,
)
from local_models.file_hashes import FileHashes
from local_models.llama_cpp.model import Model
from local_models.package_index import Download, Wheels
from local_models.references import HubReference, Role, parse_reference, quantisation_of
from local_models.sources import Folder, Source
from local_models.store import Store, StoredModel, open_store
from local_models.user_catalogue import UserCatalogue, user_file
from local_models.vocabulary import Vocabulary
from tests.local_models.conftest import CONTENT, Fake, NoHub, silent


def test_the_shipped_catalogue_knows_the_parts_of_its_pairs_and_variants() -> None:
    catalogue = shipped()

    assert catalogue.files("smollm2") == ["smollm2-135m-q4_0", "smollm2-135m-q8_0"]
    assert catalogue.part("qwen2.5-coder", "draft") == "qwen2.5-coder-0.5b-q4_0"
    recipe = catalogue.recipe("qwen2.5-coder-1.5b-q8_0")
    assert (recipe.model, recipe.quantisation) == ("qwen2.5-coder-1.5b", "Q8_0")


def test_every_shipped_model_has_a_hub_and_wheels_with_hashes() -> None:
    for model in shipped().models.values():
        hashes = [model.sha256, *(wheel.sha256 for wheel in model.wheels)]

        assert model.repository
        assert len(hashes) > 1
        assert all(len(bytes.fromhex(text)) == 32 for text in hashes)


def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    with pytest.raises(UnknownModel, match="smollm2-135m"):
        shipped().recipe("gpt")
    with pytest.raises(UnknownModel, match="smollm2"):
        shipped().part("gpt", "target")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('mirror = ""\n', "mirror"),
        ('[models."../x"]\nfile = "a.gguf"\n', "regex"),
        ('[models.x]\nfile = "a.gguf"\nsha256 = "../../x"\n', "64 hex"),
        ('[models.x]\nfile = "a"\nwheels = [{file = "w-1.whl", sha256 = ""}]\n', "a wheel"),
    ],
)
def test_what_is_misspelt_or_names_a_file_elsewhere_is_refused(text: str, reason: str) -> None:
    with pytest.raises(InvalidCatalogue, match=reason):
        parse_catalogue(text)


def test_a_variant_of_a_variant_is_refused() -> None:
    with pytest.raises(UnknownModel, match="no model 'x'"):
        parse_catalogue('[variants.x]\nmodel = "x"\nquantisation = "Q4_0"\n').checked()


def test_the_drafts_of_a_target_are_those_of_its_pairs() -> None:
    catalogue = shipped()

    assert catalogue.drafts_of("smollm2-135m-q8_0") == ["smollm2-135m-q4_0"]
    assert catalogue.drafts_of("qwen2.5-coder-1.5b") == ["qwen2.5-coder-0.5b-q4_0"]
    assert catalogue.drafts_of("gemma-3-270m") == []


# A user's catalogue is used like the shipped one, and nothing that they wrote is lost.

WRITTEN = """\
# my models
[models.mine]   # the good one
file = "/models/mine.gguf"

[pairs.mine-smollm]
draft = "smollm2-135m-q4_0"
target = "mine"
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "models.toml"
    file.write_text(WRITTEN)
    return file


def test_the_file_is_in_the_configuration_directory(tmp_path: Path) -> None:
    assert user_file({"PICOSPEC_CONFIG_DIR": "/a"}) == Path("/a/models.toml")
    assert user_file({"XDG_CONFIG_HOME": "/b"}) == Path("/b/picospec/models.toml")
    assert user_file({}) == Path.home() / ".config/picospec/models.toml"


def test_a_users_pair_joins_a_shipped_draft_and_an_own_target(file: Path) -> None:
    catalogue = shipped() | UserCatalogue(file).read()

    assert catalogue.files("mine-smollm") == ["smollm2-135m-q4_0", "mine"]
    assert catalogue.drafts_of("mine") == ["smollm2-135m-q4_0"]


def test_an_added_model_is_read_again_and_comments_stay(file: Path) -> None:
    own = UserCatalogue(file)
    model = ModelFile("b.gguf", "mit", 5, "0" * 64, "owner/b")

    own.add("b", model, {"b-pair": Pair("b", "mine")})

    assert own.read().models["b"] == model
    assert own.read().pairs["b-pair"] == Pair("b", "mine")
    assert file.read_text().startswith("# my models\n[models.mine]   # the good one\n")


def test_the_first_model_makes_the_file(tmp_path: Path) -> None:
    own = UserCatalogue(tmp_path / "new" / "models.toml")

    own.add("a", ModelFile("/a.gguf"), {})

    assert own.read().models == {"a": ModelFile("/a.gguf")}


def test_a_removed_model_takes_its_pairs_along(file: Path) -> None:
    own = UserCatalogue(file)

    own.remove("mine")

    assert own.read().names == []
    assert file.read_text().startswith("# my models")


@pytest.mark.parametrize(
    ("text", "error", "reason"),
    [
        ("[models.x", InvalidCatalogue, r"models\.toml"),
        ('[models.x]\nfil = "a"', InvalidCatalogue, r"models\.toml.*fil"),
        (
            '[models.smollm2-135m]\nfile = "a"',
            InvalidCatalogue,
            "smollm2-135m is a name of the built-in",
        ),
        ('[pairs.p]\ndraft = "x"\ntarget = "smollm2-135m"', UnknownModel, "no model 'x'"),
    ],
)
def test_a_file_that_cannot_be_used_is_an_error_that_says_why(
    tmp_path: Path, text: str, error: type[Exception], reason: str
) -> None:
    (tmp_path / "models.toml").write_text(text)

    with pytest.raises(error, match=reason):
        open_store({"PICOSPEC_CONFIG_DIR": str(tmp_path)})


def test_a_name_that_would_be_a_path_is_not_written(file: Path) -> None:
    with pytest.raises(InvalidCatalogue):
        UserCatalogue(file).add("../x", ModelFile("/a.gguf"), {})

    assert file.read_text() == WRITTEN


# A reference names one file of a repository, or says which there are.


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        ("Qwen/Qwen3-4B-GGUF", HubReference("Qwen/Qwen3-4B-GGUF")),
        ("a/b:Q4_K_M", HubReference("a/b", quantisation="Q4_K_M")),
        ("hf://a/b", HubReference("a/b")),
        ("hf://a/b.c/d/e.gguf", HubReference("a/b.c", file="d/e.gguf")),
        ("smollm2", None),
        ("a/b/c.gguf", None),
        ("/a/b", None),
        ("../b", None),
        ("hf://a", None),
        ("a/b:", None),
    ],
)
def test_a_reference_has_one_of_four_forms(text: str, reference: HubReference | None) -> None:
    assert parse_reference(text) == reference


@pytest.mark.parametrize(
    ("file", "quantisation"),
    [
        ("qwen2.5-0.5b-instruct-q4_k_m.gguf", "Q4_K_M"),
        ("Llama-3.2.IQ3_XXS.gguf", "IQ3_XXS"),
        ("BF16/model-BF16.gguf", "BF16"),
        ("Q8_0.gguf", "Q8_0"),
        ("model-f16.gguf", "F16"),
        ("q4-tuned-model.gguf", ""),
        ("model.gguf", ""),
    ],
)
def test_a_files_name_ends_in_its_quantisation(file: str, quantisation: str) -> None:
    assert quantisation_of(file) == quantisation


@pytest.mark.parametrize(
    ("role", "files", "chosen"),
    [
        ("target", ["m-Q4_K_M.gguf", "m-Q8_0.gguf", "m-F16.gguf"], "m-Q8_0.gguf"),
        ("target", ["m-Q4_K_M.gguf", "m-F16.gguf"], "m-F16.gguf"),
        ("draft", ["m-Q8_0.gguf", "m-Q4_K_M.gguf", "m-Q4_0.gguf"], "m-Q4_0.gguf"),
        ("draft", ["m-Q8_0.gguf", "mmproj-m-Q4_0.gguf"], "m-Q8_0.gguf"),
        ("draft", ["model.gguf"], "model.gguf"),
    ],
)
def test_the_best_file_for_its_use_is_chosen(role: Role, files: list[str], chosen: str) -> None:
    assert HubReference("a/b").choose(files, role) == chosen


def test_two_files_of_one_quantisation_must_be_told_apart() -> None:
    files = ["small-Q8_0.gguf", "large-Q8_0.gguf"]

    with pytest.raises(UnknownModel, match=r"large-Q8_0.*small-Q8_0.*use hf://"):
        HubReference("a/b").choose(files, "target")

    assert HubReference("a/b", file=files[0]).choose(files, "target") == files[0]


# A target's family is told by its name.


@pytest.mark.parametrize(
    ("target", "first"),
    [
        ("Qwen/Qwen3-32B", "unsloth/Qwen3-0.6B-GGUF:Q4_0"),
        ("Qwen3-Coder-30B-A3B-Instruct", "unsloth/Qwen3-0.6B-GGUF:Q4_0"),
        ("Qwen/Qwen2.5-72B-Instruct", "Qwen/Qwen2.5-0.5B-Instruct-GGUF:Q4_0"),
        ("meta-llama/Llama-3.3-70B-Instruct", "bartowski/Llama-3.2-1B-Instruct-GGUF:Q4_0"),
        ("Meta-Llama-3.1-8B", "bartowski/Llama-3.2-1B-Instruct-GGUF:Q4_0"),
        ("Qwen/Qwen3.5-27B", "unsloth/Qwen3.5-0.8B-GGUF:Q4_0"),
        ("unsloth/Qwen3.8-27B-GGUF", "unsloth/Qwen3.5-0.8B-GGUF:Q4_0"),
        ("ibm-granite/granite-4.0-h-small", "ibm-granite/granite-4.0-350m-GGUF"),
        ("LiquidAI/LFM2.5-8B-A1B", "LiquidAI/LFM2-350M-GGUF:Q4_0"),
        ("google/gemma-4-31b-it", None),
        ("mistralai/Mistral-Small-3.2-24B", None),
        ("openai/gpt-oss-120b", None),
    ],
)
def test_the_shipped_families_recognise_targets_by_their_names(
    target: str, first: str | None
) -> None:
    assert next(iter(shipped().siblings_of(target)), None) == first


@pytest.mark.parametrize("wrong", [{"targets": "("}, {"drafts": ("no reference",)}])
def test_a_malformed_family_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"reference|unterminated"):
        Family(**({"targets": "a", "drafts": ()} | wrong))  # type: ignore[arg-type]


# The store pulls, makes, checks and prunes files.


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


def test_a_pulled_model_has_its_bytes_and_is_not_pulled_again(make: Make) -> None:
    source = Fake(CONTENT)
    store = make(source)

    (path,) = store.pull("toy", silent)

    assert path.read_bytes() == CONTENT
    assert store.find("toy", "target") == StoredModel("toy", path)
    store.verify("toy")
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


def test_an_unreachable_source_is_asked_once_in_a_pull(
    model: ModelFile, tmp_path: Path
) -> None:
    other = ModelFile("b.gguf", sha256=sha256(b"other").hexdigest(), repository="o/b")
    both = Catalogue({"toy": model, "other": other}, {}, {"both": Pair("toy", "other")})
    for file, content in ((model.file, CONTENT), (other.file, b"other")):
        (tmp_path / file).write_bytes(content)
    hub = Fake(Unreachable("no route"))

    Store(tmp_path / "store", both, [hub, Folder(tmp_path)], NoHub()).pull("both", silent)

    assert hub.calls == 1


def test_without_the_hub_an_error_names_the_other_ways(make: Make) -> None:
    with pytest.raises(SourceFailed, match=r"no route.*MODEL_FOLDER.*toy\.gguf.*hub,wheels"):
        make(Fake(Unreachable("no route"))).pull("toy", silent)
    with pytest.raises(SourceFailed, match=r"no hub.*HF_ENDPOINT.*path"):
        make(Fake(CONTENT)).pull("maker/toy", silent)


def test_a_path_without_a_file_cannot_be_pulled(make: Make) -> None:
    with pytest.raises(UnknownModel, match="no file /missing"):
        make(Fake(CONTENT)).pull("/missing.gguf", silent)


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

    assert list(store.root.rglob("*.gguf*")) == [store.root / "names" / "toy.gguf"]


@pytest.mark.usefixtures("quick_variants")
def test_what_others_were_made_of_is_pruned_and_they_stay_until_its_hash_changes(
    make: Make, model: ModelFile
) -> None:
    store = make(Fake(CONTENT))
    store.pull("toy-q4", silent)
    assert store.prune() == 0  # the other variant is made of it, too
    store.pull("toy-q8", silent)
    (store.root / "partial" / "unknown").write_bytes(b"begun")

    assert store.prune() == len(CONTENT) + len(b"begun")

    assert store.find("toys", "draft").path.read_bytes() == CONTENT + b"Q4_0"
    with pytest.raises(NotPulled):
        store.find("toy", "draft")
    store.pull("toy", silent)
    assert store.prune() == len(CONTENT)
    store.catalogue.models["toy"] = structs.replace(model, sha256="0" * 64)  # type: ignore[index]
    with pytest.raises(NotPulled):
        store.find("toy-q4", "draft")


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


@pytest.mark.system
def test_the_package_index_is_asked_only_where_it_is_named(tmp_path: Path) -> None:
    here = {"PICOSPEC_CACHE": str(tmp_path), "HF_ENDPOINT": "http://127.0.0.1:9"}

    with pytest.raises(SourceFailed, match=r"hub: (?!.*wheels: )"):
        open_store(here).pull("smollm2-135m", silent)


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


@pytest.mark.system
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


# A hash is that of the whole file as it is, and is computed once.


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that are read to be hashed."""
    files: list[Path] = []
    sha256_of = file_hashes.sha256_of
    monkeypatch.setattr(
        file_hashes, "sha256_of", lambda path: (files.append(path), sha256_of(path))[1]
    )
    return files


def test_a_file_is_read_once_and_again_when_it_has_changed(
    tmp_path: Path, read: list[Path]
) -> None:
    file, kept = tmp_path / "m.gguf", tmp_path / "new" / "hashes.json"
    file.write_bytes(b"one")
    for _ in range(2):  # a second process finds what the first one kept
        assert FileHashes(kept).of(file) == hashlib.sha256(b"one").hexdigest()
    assert len(read) == 1

    times = file.stat().st_atime_ns, file.stat().st_mtime_ns
    other = tmp_path / "other"
    other.write_bytes(b"two")
    os.utime(other, ns=times)
    other.replace(file)

    assert FileHashes(kept).of(file) == hashlib.sha256(b"two").hexdigest()
    assert os.listdir(kept.parent) == ["hashes.json"]


@pytest.mark.parametrize("corrupt", [b"", b"{", b"[]", b'{"/m": [[1], 2]}', b"\xff"])
def test_what_is_kept_wrongly_is_ignored(
    tmp_path: Path, corrupt: bytes, read: list[Path]
) -> None:
    file, kept = tmp_path / "m.gguf", tmp_path / "hashes.json"
    file.write_bytes(b"one")
    kept.write_bytes(corrupt)

    assert [FileHashes(kept).of(file) for _ in range(2)] == [
        hashlib.sha256(b"one").hexdigest()
    ] * 2
    assert len(read) == 1


def test_where_nothing_can_be_kept_the_file_is_read_each_time(
    tmp_path: Path, read: list[Path]
) -> None:
    file = tmp_path / "m.gguf"
    file.write_bytes(b"one")
    for _ in range(2):
        assert FileHashes(file / "no-folder").of(file)

    assert len(read) == 2


def test_a_blob_that_a_disk_has_changed_is_not_served(tmp_path: Path) -> None:
    blob = tmp_path / hashlib.sha256(b"one").hexdigest()
    blob.write_bytes(b"one")
    link = tmp_path / "m.gguf"
    link.symlink_to(blob)
    hashes = FileHashes(tmp_path / "hashes.json")

    assert hashes.of(link) == blob.name
    blob.write_bytes(b"two")
    with pytest.raises(WrongHash, match="has changed"):
        hashes.of(link)


# A draft is taken that was paired with the target, or else one whose tokens it shares.

ABC = Vocabulary((b"a", b"b", b"c"), frozenset(), frozenset())
XYZ = Vocabulary((b"x", b"y", b"z"), frozenset(), frozenset())


def store(tmp_path: Path, **pairs: Pair) -> Store:
    def model(size: int, vocabulary: Vocabulary) -> ModelFile:
        return ModelFile("x.gguf", bytes=size, repository="o/r", vocabulary=vocabulary.digest)

    models = {"tiny": model(10, XYZ), "small": model(20, ABC), "large": model(500, ABC)}
    variants = {f"{name}-q4": Variant(name, "Q4_0") for name in models}
    return Store(tmp_path, Catalogue(models, variants, pairs), (), NoHub())


@pytest.mark.parametrize(
    ("target", "vocabulary", "target_bytes", "draft"),
    [
        ("any", ABC, None, "small-q4"),
        ("any", XYZ, None, "tiny-q4"),
        ("any", replace(ABC, padding=9), None, "small-q4"),
        ("any", replace(ABC, pieces=(b"o",)), None, None),
        ("any", ABC, 30, None),  # it is hardly larger than the draft
        ("any", ABC, 40, "small-q4"),
        ("small", ABC, None, "large-q4"),  # no model drafts for itself
    ],
)
def test_the_smallest_draft_with_the_targets_tokens_is_taken_if_any(
    tmp_path: Path,
    target: str,
    vocabulary: Vocabulary,
    target_bytes: int | None,
    draft: str | None,
) -> None:
    assert fitting_draft(store(tmp_path), target, vocabulary, target_bytes) == draft


def test_a_pair_comes_first_whatever_its_tokens(tmp_path: Path) -> None:
    paired = store(tmp_path, mine=Pair("tiny", "large"))

    assert fitting_draft(paired, "large", ABC) == "tiny"


@pytest.mark.models
@pytest.mark.parametrize("name", ["smollm2-135m", "qwen2.5-coder-0.5b"])
def test_the_shipped_catalogue_says_which_tokens_its_models_have(name: str) -> None:
    path = open_store({}).find(f"{name}-q4_0", "draft").path
    model = Model(path, vocabulary_only=True)

    assert shipped().models[name].vocabulary == model.vocabulary.digest
    model.close()


@pytest.mark.models
def test_a_draft_whose_tokens_nobody_wrote_down_is_opened(tmp_path: Path) -> None:
    path = open_store({}).find("smollm2", "draft").path
    here = Catalogue({"mine": ModelFile(str(path))}, {}, {"p": Pair("mine", "mine")})
    own = Store(tmp_path, here, (), NoHub())
    model = Model(path, vocabulary_only=True)

    assert fitting_draft(own, "any", model.vocabulary) == "mine"
    assert fitting_draft(own, "any", ABC) is None
    model.close()
