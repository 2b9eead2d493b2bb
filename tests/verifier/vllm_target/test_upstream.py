"""Notices when vLLM mends what the worker works around; then the note there can go."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.verifier.vllm_target.conftest import engine, make

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("default")]


def test_vllm_still_expands_settings_into_uninitialised_memory_on_cpus() -> None:
    torch = pytest.importorskip("torch")
    platforms = pytest.importorskip("vllm.platforms")
    if not platforms.current_platform.is_cpu():
        pytest.skip("only the CPU build is affected")
    platforms.current_platform.import_kernels()
    platforms.current_platform.register_triton_kernel_overrides()
    sampler = pytest.importorskip("vllm.v1.sample.rejection_sampler")
    given = torch.tensor([0.5, 1.3])
    junk = torch.full((5,), 123456.0)
    del junk

    expanded = sampler.expand_batch_to_tokens(given, torch.tensor([2, 5]), 5)

    assert expanded.tolist() != pytest.approx([0.5, 0.5, 1.3, 1.3, 1.3])


async def test_a_version_that_is_not_tested_runs_its_self_test_though_it_is_switched_off(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from picospec.verifier.vllm_target.configuring import compat

    monkeypatch.setattr(compat, "TESTED", ((0, 1), (0, 2)))
    async with engine(directory) as running:
        target = make(running, self_test=False)
        await target.start()

        assert (await target.figures())["steps"] > 0
