"""The catalogue defines every name it uses."""

from __future__ import annotations

import pytest

from picospec.models.catalogue import parse_catalogue, shipped
from picospec.models.errors import InvalidCatalogue, UnknownModel


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
