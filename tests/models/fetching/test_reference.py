"""A reference names one file of a repository, or says which there are."""

from __future__ import annotations

import pytest

from picospec.models.catalogue import HubReference, Role, parse_reference, quantisation_of
from picospec.models.errors import UnknownModel


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
