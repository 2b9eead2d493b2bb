"""What a verifier's settings make of a machine's devices and a model, without any device."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from local_models.errors import CannotOpen
from local_models.llama_cpp.context_length import state_bytes
from local_models.llama_cpp.devices import Device, Placement
from local_models.llama_cpp.model import Model
from tests.local_models.llama_cpp.hybrids import ARCHITECTURES, ROLLBACK, write
from verifier.llama_target import placing
from verifier.llama_target.pass_runner import PassRunner
from verifier.llama_target.placing import CHECKPOINTS, Plan
from verifier.settings import LlamaSettings

CARD = Device("CUDA0", "a card", "CUDA", "gpu", 23 << 30, 24 << 30)


def test_without_a_device_a_text_is_shaped_by_threads_and_cache_alone() -> None:
    one, two = (Plan(LlamaSettings(threads=count), []) for count in (1, 2))

    assert one.shapes == (1, "F16")
    assert two.shapes == (2, "Q8_0")
    assert (one.placement, one.flash_attention, one.exact) == (Placement(), True, "strict")
    assert one.is_known


def test_with_a_device_all_layers_are_there_by_default() -> None:
    plan = Plan(LlamaSettings(threads=2), [CARD])

    assert plan.placement == Placement(-1)
    assert (plan.cache, plan.flash_attention, plan.exact) == ("F16", None, "near")
    assert not plan.is_known
    assert not Plan(LlamaSettings(gpu_layers=0), [CARD]).devices


def test_device_backend_placement_and_exactness_are_part_of_what_shapes_a_text() -> None:
    other = Device("Vulkan0", "a card", "Vulkan", "gpu", 23 << 30, 24 << 30)
    plans = [
        Plan(LlamaSettings(threads=2), []),
        Plan(LlamaSettings(threads=2), [CARD]),
        Plan(LlamaSettings(threads=2), [other]),
        Plan(LlamaSettings(threads=2, gpu_layers=3), [CARD]),
        Plan(LlamaSettings(threads=2, exact="strict"), [CARD]),
        Plan(LlamaSettings(threads=2, cache_type_v="q8_0"), [CARD]),
        Plan(LlamaSettings(threads=2, flash_attention="off"), [CARD]),
    ]

    assert len({str(plan.shapes) for plan in plans}) == len(plans)


def test_states_of_recurrent_layers_are_counted_and_must_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Model(write("qwen35", tmp_path / "model.gguf"))
    plan = Plan(LlamaSettings(slots=2, threads=1), [])
    length = plan.length(model, 512, max_verify=16)

    monkeypatch.setattr(placing, "memory_bytes", lambda: length.state_bytes - 1)

    assert length.state_bytes == 2 * (17 + CHECKPOINTS) * state_bytes(model.metadata())
    with pytest.raises(
        CannotOpen, match="Each of 2 slots has one for each of 16 draft tokens, and 4 more"
    ):
        plan.length(model, 512, max_verify=16)
    plan.length(model, 512, max_verify=15)
    model.close()
    on_card = Plan(LlamaSettings(slots=2), [replace(CARD, free_bytes=300 << 20)])
    assert on_card.tokens(tmp_path / "model.gguf", max_verify=16) == 2048
    with pytest.raises(CannotOpen, match="for the states of recurrent layers"):
        on_card.tokens(tmp_path / "model.gguf", max_verify=4000)


@pytest.mark.parametrize("architecture", sorted({*ARCHITECTURES} - {*ROLLBACK}))
def test_what_cannot_be_taken_back_is_refused_by_its_name(
    architecture: str, tmp_path: Path
) -> None:
    path = write(architecture, tmp_path / "model.gguf")

    with pytest.raises(CannotOpen, match=f"the recurrent layers of {architecture} back"):
        PassRunner(path, LlamaSettings(threads=1), max_rows=9)
