"""llama-server's options become settings of the verifier, in both commands."""

from __future__ import annotations

import pytest

from gateway.hosting.settings import WrongSettings
from picospec.up import with_options
from verifier.options import SETTINGS, llama_options
from verifier.settings import LlamaSettings, VerifierSettings

LINE = [
    *("-ngl", "33", "-sm", "row", "-ts", "3,1", "-mg", "1", "-ctk", "q8_0", "-ctv", "q5_1"),
    *("-ot", r"\.ffn_.*_exps\.=CPU,out=CUDA1", "-fa", "on", "-c", "16384", "-np", "2"),
    *("-t", "6", "--head", "mtp", "--exact", "strict"),
]
MADE = LlamaSettings(
    gpu_layers=33, split_mode="row", tensor_split=(3, 1), main_gpu=1,
    override_tensor=(r"\.ffn_.*_exps\.=CPU", "out=CUDA1"),
    cache_type_k="q8_0", cache_type_v="q5_1", flash_attention="on",
    context_tokens=16384, slots=2, threads=6, head="mtp", exact="strict",
)  # fmt: skip


def test_every_option_sets_its_setting_and_the_rest_is_left() -> None:
    settings, others = llama_options([*LINE[:2], "--port", "9", *LINE[2:]])

    assert VerifierSettings.load(None, {}, {"llama": settings}).llama == MADE
    assert others == ["--port", "9"]
    assert settings.keys() == SETTINGS.keys() <= LlamaSettings.model_fields.keys()


def test_both_spellings_are_taken_and_what_means_the_default_sets_nothing() -> None:
    for name, options in SETTINGS.items():
        for option in options:
            assert list(llama_options([f"{option}=7"])[0]) == [name]
    assert llama_options(["-ngl", "all", "-c", "0"]) == ({}, [])
    assert llama_options(["-ngl", "-1"]) == ({"gpu_layers": "-1"}, [])
    with pytest.raises(ValueError, match="-ngl: expected a value"):
        llama_options(["-ngl"])


def test_up_gives_them_to_the_verifier_and_refuses_what_it_does_not_know() -> None:
    file = {"verifier": {"llama": {"slots": 4, "threads": 2}}, "edge": {"threads": 1}}

    tables = with_options(file, LINE)

    assert tables["edge"] == file["edge"]
    assert LlamaSettings.model_validate(tables["verifier"]["llama"]) == MADE
    with pytest.raises(WrongSettings, match="no option --verifer-port"):
        with_options({}, ["--verifer-port", "9"])
