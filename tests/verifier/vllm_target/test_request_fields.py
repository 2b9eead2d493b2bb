"""No field of vLLM's own API was forgotten: what is unknown here cannot change an answer."""

from __future__ import annotations

import pytest

from picospec.gateway.doors.chat import ChatRequest
from picospec.gateway.doors.completions import CompletionRequest
from picospec.gateway.doors.request import GenerationRequest
from picospec.gateway.schema import NEUTRAL

chat = pytest.importorskip("vllm.entrypoints.openai.chat_completion.protocol")
completion = pytest.importorskip("vllm.entrypoints.openai.completion.protocol")

HARMLESS = {
    "cache_salt",
    "ec_transfer_params",
    "kv_transfer_params",
    "media_io_kwargs",
    "mm_payload",
    "mm_processor_kwargs",
    "priority",
    "request_id",
    "return_mm_kwargs",
    "return_token_offsets",
    "routed_experts_prompt_start",
    "session_id",
    "spaces_between_special_tokens",
    "stream_interval",
    "truncation_side",
    "user",
}


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (chat.ChatCompletionRequest, ChatRequest),
        (completion.CompletionRequest, CompletionRequest),
    ],
)
def test_every_field_of_vllm_has_its_place(theirs: type, ours: type[GenerationRequest]) -> None:
    known = {*ours.model_fields, *NEUTRAL}

    assert set(theirs.model_fields) - known <= HARMLESS
