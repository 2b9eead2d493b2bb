"""A draft is taken that was paired with the target, or else one whose tokens it shares."""

from __future__ import annotations

from pathlib import Path

import pytest

from picospec.models.catalogue import Catalogue, ModelFile, Pair, Variant, shipped
from picospec.models.llama_cpp.model import Model
from picospec.models.obtaining import fitting_draft
from picospec.models.store import Store, open_store
from picospec.models.vocabulary import Vocabulary
from tests.models.test_store import NoHub

ABC = Vocabulary((b"a", b"b", b"c"), frozenset(), frozenset())
XYZ = Vocabulary((b"x", b"y", b"z"), frozenset(), frozenset())


def store(tmp_path: Path, **pairs: Pair) -> Store:
    def model(size: int, vocabulary: Vocabulary) -> ModelFile:
        return ModelFile("x.gguf", bytes=size, repository="o/r", vocabulary=vocabulary.digest)

    models = {"tiny": model(10, XYZ), "small": model(20, ABC), "large": model(500, ABC)}
    variants = {f"{name}-q4": Variant(name, "Q4_0") for name in models}
    return Store(tmp_path, Catalogue(models, variants, pairs), (), NoHub())


def test_the_smallest_draft_with_the_targets_tokens_is_taken(tmp_path: Path) -> None:
    assert fitting_draft(store(tmp_path), "any", ABC) == "small-q4"
    assert fitting_draft(store(tmp_path), "any", XYZ) == "tiny-q4"


def test_padding_does_not_matter(tmp_path: Path) -> None:
    padded = Vocabulary(ABC.pieces, frozenset(), frozenset(), padding=9)

    assert fitting_draft(store(tmp_path), "any", padded) == "small-q4"


def test_a_pair_comes_first_whatever_its_tokens(tmp_path: Path) -> None:
    paired = store(tmp_path, mine=Pair("tiny", "large"))

    assert fitting_draft(paired, "large", ABC) == "tiny"


def test_no_draft_is_better_than_one_that_does_not_fit_or_is_as_large(tmp_path: Path) -> None:
    other = Vocabulary((b"o",), frozenset(), frozenset())

    assert fitting_draft(store(tmp_path), "any", other) is None
    assert fitting_draft(store(tmp_path), "any", ABC, target_bytes=30) is None
    assert fitting_draft(store(tmp_path), "any", ABC, target_bytes=40) == "small-q4"


def test_a_model_does_not_draft_for_itself(tmp_path: Path) -> None:
    assert fitting_draft(store(tmp_path), "small", ABC) == "large-q4"


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
