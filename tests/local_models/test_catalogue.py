"""The catalogue defines every name it uses."""

from __future__ import annotations

from pathlib import Path

import pytest

from local_models.catalogue import ModelFile, Pair, parse_catalogue, shipped
from local_models.errors import InvalidCatalogue, UnknownModel
from local_models.references import HubReference, Role, parse_reference, quantisation_of
from local_models.store import open_store
from local_models.user_catalogue import UserCatalogue, user_file


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
