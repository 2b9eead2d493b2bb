"""A draft is taken that was paired with the target, or else one whose tokens it shares."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from picospec.models.catalogue import Catalogue, ModelFile, Pair, Variant, shipped
from picospec.models.llama_cpp.model import Model
from picospec.models.store import Store, fitting_draft, open_store
from picospec.models.vocabulary import Vocabulary
from tests.models.sources import NoHub

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
