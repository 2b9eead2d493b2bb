"""A value of each field of vLLM's own API, with which an edge and its verifier are asked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

CHATS, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
RESPONSES, MESSAGES = "/v1/responses", "/v1/messages"

USER = {"role": "user", "content": "Name three colours."}
SHAPE = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
FORMAT = {"type": "json_schema", "json_schema": {"name": "a", "schema": SHAPE}}
TOOL = {"name": "f", "description": "Does it.", "parameters": SHAPE}
TEXT = {"type": "input_text", "text": "Name three colours."}
NO_TOOL = {"tool_choice": "none"}
DRAWN = {"temperature": 1, "seed": 7}
BEAMS = {"use_beam_search": True, "n": 2}
STOP = {"stop": [" Red", " the", "."]}
SCORES = {"top_logprobs": 2, "include": ["message.output_text.logprobs"]}

USUAL: dict[str, dict[str, Any]] = {
    CHATS: {"messages": [USER], "max_tokens": 3},
    COMPLETIONS: {"prompt": "The capital of France is", "max_tokens": 3},
    RESPONSES: {"input": "Name three colours.", "max_output_tokens": 3},
    MESSAGES: {"messages": [USER], "max_tokens": 3},
}
VALUES: dict[str, dict[str, Any]] = {
    "add_generation_prompt": {"add_generation_prompt": False},
    "allowed_token_ids": {"allowed_token_ids": [28, 30, 253]},
    "chat_template": {"chat_template": "{{ messages }}"},  # a refusal
    "chat_template_kwargs": {"chat_template_kwargs": {"own": 1}},
    "continue_final_message": {
        "messages": [USER, {"role": "assistant", "content": "Red"}],
        "continue_final_message": True,
        "add_generation_prompt": False,
    },
    "documents": {"documents": [{"title": "a", "text": "b"}]},
    "include": SCORES,
    "input": {"input": [{"role": "user", "content": [TEXT]}]},
    "length_penalty": {"length_penalty": 0.5, **BEAMS},
    "logit_bias": {"logit_bias": {"28": 9, "30": -100}},
    "logprob_token_ids": {"logprob_token_ids": [28, 30], "logprobs": 1},
    "logprobs": {"logprobs": True},
    "max_completion_tokens": {"max_completion_tokens": 2, "max_tokens": 2},
    "messages": {"messages": [{"role": "system", "content": "Be brief."}, USER]},
    "min_p": {"min_p": 0.2, **DRAWN},
    "model": {},
    "n": {"n": 2, **DRAWN},
    "output_config": {"output_config": {"format": {"type": "json_schema", "schema": SHAPE}}},
    "prompt": {"prompt": {"id": "a"}},
    "repetition_detection": {"repetition_detection": {"max_pattern_size": 2, "min_count": 2}},
    "response_format": {"response_format": FORMAT},
    "return_tokens_as_token_ids": {"return_tokens_as_token_ids": True, "logprobs": True},
    "seed": DRAWN,
    "stop": STOP,
    "include_stop_str_in_output": {"include_stop_str_in_output": True, **STOP},
    "stream_interval": {"stream": True, "stream_interval": 2},
    "stream_options": {"stream": True, "stream_options": {"include_usage": True}},
    "structured_outputs": {"structured_outputs": {"choice": ["red", "blue"]}},
    "temperature": {"temperature": 0.7, "seed": 3},
    "text": {"text": {"format": {"type": "json_schema", "name": "a", "schema": SHAPE}}},
    "tools": {"tools": [{"type": "function", "function": TOOL}], **NO_TOOL},
    "top_k": {"top_k": 3, **DRAWN},
    "top_logprobs": {"logprobs": True, "top_logprobs": 2},
    "top_p": {"top_p": 0.5, **DRAWN},
    "truncation_side": {"truncate_prompt_tokens": 8, "truncation_side": "left"},
    "use_beam_search": BEAMS,
    "vllm_xargs": {"vllm_xargs": {"a": 1}},
} | {
    name: {name: given}
    for name, given in {
        "add_special_tokens": True, "background": False, "bad_words": [" Red", "Red"],
        "cache_salt": "a", "ec_transfer_params": {}, "echo": True,
        "enable_response_messages": True, "frequency_penalty": 1.5, "ignore_eos": True,
        "include_reasoning": False, "instructions": "Be brief.", "kv_transfer_params": {},
        "max_output_tokens": 2, "max_tokens": 2, "max_tool_calls": 2, "media_io_kwargs": {},
        "metadata": {"user_id": "a"}, "min_tokens": 3, "mm_payload": "none",
        "mm_processor_kwargs": {}, "parallel_tool_calls": False, "presence_penalty": 1.5,
        "previous_input_messages": [], "previous_response_id": "resp_none", "priority": 0,
        "prompt_cache_key": "a", "prompt_embeds": "AAAA", "prompt_logprobs": 1,
        "reasoning": {"effort": "low"}, "reasoning_effort": "low", "repetition_penalty": 1.4,
        "request_id": "own", "return_mm_kwargs": False, "return_prompt_text": True,
        "return_token_ids": True, "return_token_offsets": False,
        "routed_experts_prompt_start": 0, "service_tier": "auto", "session_id": "own",
        "skip_special_tokens": False, "spaces_between_special_tokens": False,
        "stop_sequences": [" Red", "."], "stop_token_ids": [28, 30], "store": False,
        "stream": True, "suffix": ".", "system": "Be brief.", "thinking": {"type": "disabled"},
        "thinking_token_budget": 5, "tool_choice": "none",
        "truncate_prompt_tokens": 8, "truncation": "disabled", "user": "ann",
        "watermarking": True,
    }.items()
}  # fmt: skip
OF_PATH: dict[str, dict[str, dict[str, Any]]] = {
    CHATS: {},
    COMPLETIONS: {
        "logprobs": {"logprobs": 2},
        "prompt": {"prompt": [[504, 2365, 282], [504, 2365]]},
        "return_tokens_as_token_ids": {"return_tokens_as_token_ids": True, "logprobs": 1},
    },
    RESPONSES: {
        "tools": {"tools": [{"type": "function", **TOOL}], **NO_TOOL},
        "top_logprobs": SCORES,
    },
    MESSAGES: {
        "messages": {"messages": [{**USER, "content": [{"type": "text", "text": "Hi"}]}]},
        "temperature": {"temperature": 0},
        "tool_choice": {"tool_choice": {"type": "none"}},
        "tools": {
            "tools": [{"name": "f", "input_schema": SHAPE}],
            "tool_choice": {"type": "none"},
        },
        "top_k": {"top_k": 3},  # no seed: this API has none
        "top_p": {"top_p": 0.5},
    },
}


def requests(classes: Mapping[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    """Return path, field and body of a request for each field of vLLM's classes, by path."""
    return [
        (path, field, {**USUAL[path], **{**VALUES, **OF_PATH[path]}[field]})
        for path, of in classes.items()
        for field in of.model_fields
    ]
