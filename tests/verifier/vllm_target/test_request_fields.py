"""Each field of vLLM's own API is drafted under at an edge, or relayed, or listed here."""

from __future__ import annotations

import pytest

from picospec.gateway.doors.chat import ChatRequest
from picospec.gateway.doors.completions import CompletionRequest
from picospec.gateway.doors.messages import MessagesRequest
from picospec.gateway.doors.responses import ResponsesRequest
from picospec.gateway.schema import NEUTRAL, RequestModel
from picospec.models.tokenizer_file import TokenizerFile

pytest.importorskip("vllm")
endpoints = pytest.importorskip("picospec.verifier.vllm_target.serving.endpoints")

NOT_LISTED = {
    "ec_transfer_params",
    "kv_transfer_params",
    "mm_payload",
    "priority",
    "request_id",
    "return_mm_kwargs",
    "return_token_offsets",
    "session_id",
}
"""No client of an edge reaches these fields of vLLM's, which change no text."""

REFINING = {
    "cache_salt",
    "media_io_kwargs",
    "metadata",
    "mm_processor_kwargs",
    "routed_experts_prompt_start",
    "spaces_between_special_tokens",
    "stream_interval",
    "truncation_side",
    "user",
}
"""By themselves these change no text, so an edge ignores them; with a field that is relayed
they are passed on."""

FILE = TokenizerFile("huggingface", b"", template="{{ documents }}")


@pytest.mark.parametrize(
    ("path", "ours"),
    [
        ("/v1/chat/completions", ChatRequest),
        ("/v1/completions", CompletionRequest),
        ("/v1/responses", ResponsesRequest),
        ("/v1/messages", MessagesRequest),
    ],
)
def test_every_field_of_vllm_has_its_place(path: str, ours: type[RequestModel]) -> None:
    theirs = set(endpoints.REQUESTS[path].model_fields)
    listed = set(endpoints.fields_of(FILE)[path])
    of_a_chat = set() if "completions" in path else {*ChatRequest.model_fields}
    drafted = {*ours.model_fields} | of_a_chat
    relayed = listed & NEUTRAL.keys()

    assert theirs - drafted - relayed <= NOT_LISTED | REFINING
    assert theirs - listed <= NOT_LISTED | {"background", "previous_response_id"}


def test_documents_that_no_template_shows_are_not_listed() -> None:
    for file, expected in ((FILE, True), (TokenizerFile("huggingface", b""), False)):
        listed = endpoints.fields_of(file)["/v1/chat/completions"]
        assert ("documents" in listed) is expected
