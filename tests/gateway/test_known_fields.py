"""No field of the APIs that clients are written for was forgotten.

Each is served, or known as one that changes an answer, or listed here as one that cannot.
"""

from __future__ import annotations

from openai.types import completion_create_params as completions
from openai.types.chat import completion_create_params as chats
from openai.types.responses import response_create_params as responses

from picospec.gateway.doors.chat.request import ChatRequest
from picospec.gateway.doors.completions.request import CompletionRequest
from picospec.gateway.doors.responses.request import ResponsesRequest
from picospec.gateway.schemas.known import NEUTRAL

KNOWN = {*NEUTRAL, "n_cmpl", "n_predict"}

OPENAI_HARMLESS = {
    "metadata", "prompt_cache_key", "prompt_cache_options", "prompt_cache_retention",
    "safety_identifier", "service_tier", "store", "user", "verbosity",
}  # fmt: skip
RESPONSES_HARMLESS = {
    "access_programs", "background_options", "image", "prompt_cache_options",
    "prompt_cache_retention",
}  # fmt: skip


def test_every_field_of_openais_sdk_has_its_place() -> None:
    chat = set(chats.CompletionCreateParamsBase.__annotations__)
    text = set(completions.CompletionCreateParamsBase.__annotations__)

    assert chat - KNOWN - set(ChatRequest.model_fields) == OPENAI_HARMLESS
    assert text - KNOWN - set(CompletionRequest.model_fields) == {"user"}


def test_every_field_of_a_response_has_its_place() -> None:
    named = set(responses.ResponseCreateParamsBase.__annotations__)

    served = {*ResponsesRequest.model_fields, *ChatRequest.model_fields}
    assert named - KNOWN - served == RESPONSES_HARMLESS
