"""No field of the APIs that clients are written for was forgotten.

Each is served, or known as one that changes an answer, or listed here as one that cannot.
"""

from __future__ import annotations

from openai.types import completion_create_params as completions
from openai.types.chat import completion_create_params as chats

from picospec.gateway.doors.chat.request import ChatRequest
from picospec.gateway.doors.completions.request import CompletionRequest
from picospec.gateway.doors.parameters import PARAMETERS
from picospec.gateway.schemas.known import NEUTRAL

KNOWN = {*PARAMETERS, *NEUTRAL, "n_cmpl", "n_predict", "repeat_penalty"}

OPENAI_HARMLESS = {
    "metadata",
    "prompt_cache_key",
    "prompt_cache_options",
    "prompt_cache_retention",
    "safety_identifier",
    "service_tier",
    "store",
    "user",
}

LLAMA_SERVER = [
    "adaptive_target",
    "chat_parser",
    "continue_final_message",
    "dry_multiplier",
    "dynatemp_range",
    "echo",
    "frequency_penalty",
    "generation_prompt",
    "grammar",
    "grammar_lazy",
    "grammar_triggers",
    "ignore_eos",
    "json_schema",
    "logit_bias",
    "lora",
    "min_keep",
    "min_p",
    "mirostat",
    "n",
    "n_cmpl",
    "n_indent",
    "n_predict",
    "n_probs",
    "parse_tool_calls",
    "post_sampling_probs",
    "presence_penalty",
    "reasoning_budget_tokens",
    "reasoning_format",
    "repeat_penalty",
    "return_tokens",
    "samplers",
    "seed",
    "stop",
    "stream",
    "stream_options",
    "t_max_predict_ms",
    "temperature",
    "top_k",
    "top_n_sigma",
    "top_p",
    "typical_p",
    "xtc_probability",
]
"""The fields of its completions, from tools/server/server-schema.cpp, except those that only
report, only spend time, or refine one of these."""


def test_every_field_of_openais_sdk_has_its_place() -> None:
    chat = set(chats.CompletionCreateParamsBase.__annotations__)
    text = set(completions.CompletionCreateParamsBase.__annotations__)

    assert chat - KNOWN - set(ChatRequest.model_fields) == OPENAI_HARMLESS
    assert text - KNOWN - set(CompletionRequest.model_fields) == {"user"}


def test_every_field_by_which_llama_server_changes_an_answer_is_known() -> None:
    assert set(LLAMA_SERVER) <= KNOWN | set(ChatRequest.model_fields)
