"""A user's catalogue is used like the shipped one, and nothing that they wrote is lost."""

from __future__ import annotations

from pathlib import Path

import pytest

from picospec.models.catalogue import ModelFile, Pair, UserCatalogue, shipped, user_file
from picospec.models.errors import InvalidCatalogue, UnknownModel
from picospec.models.store import open_store

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
