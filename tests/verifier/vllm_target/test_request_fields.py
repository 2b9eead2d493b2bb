"""Each field of vLLM's own API is drafted under at an edge, or relayed, or listed here."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from picospec.gateway.doors.chat import ChatRequest
from picospec.gateway.doors.completions import CompletionRequest
from picospec.gateway.doors.messages import MessagesRequest
from picospec.gateway.doors.responses import ResponsesRequest
from picospec.gateway.schema import NEUTRAL, RequestModel
from picospec.models.tokenizer_file import TokenizerFile

pytest.importorskip("vllm")
endpoints = pytest.importorskip("picospec.verifier.vllm_target.serving.endpoints")

CHATS, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
RESPONSES, MESSAGES = "/v1/responses", "/v1/messages"

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
        (CHATS, ChatRequest),
        (COMPLETIONS, CompletionRequest),
        (RESPONSES, ResponsesRequest),
        (MESSAGES, MessagesRequest),
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
        listed = endpoints.fields_of(file)[CHATS]
        assert ("documents" in listed) is expected


# The types of content parts are those that vLLM takes for its model.

SAMPLES: dict[str, dict[str, Any]] = {
    "image_url": {"image_url": {"url": "data:,"}},
    "audio_url": {"audio_url": {"url": "data:,"}},
    "video_url": {"video_url": {"url": "data:,"}},
    "input_audio": {"input_audio": {"data": "", "format": "wav"}},
    "input_image": {"image_url": "data:,", "detail": "auto"},
}


def serving(limits: dict[str, int], *, embeds: bool = False, **model: Any) -> Any:
    """What a server knows of a model that takes media. limits: how many of each medium."""
    info = SimpleNamespace(allowed_mm_limits=limits)
    multimodal = SimpleNamespace(enable_mm_embeds=embeds)
    config = {"enable_prompt_embeds": False, "multimodal_config": multimodal, **model}
    return SimpleNamespace(
        renderer=SimpleNamespace(mm_processor=SimpleNamespace(info=info) if limits else None),
        vllm_config=SimpleNamespace(model_config=SimpleNamespace(**config)),
    )


def test_vllm_refuses_a_part_whose_type_is_not_listed_and_takes_any_other(
    directory: Path,
) -> None:
    from vllm.config import ModelConfig
    from vllm.renderers.chat_utils import MM_PARSER_MAP, parse_chat_messages

    model, taken = ModelConfig(str(directory)), {CHATS: set(), RESPONSES: set()}
    for kind in {*MM_PARSER_MAP, "file", "input_file", "own"}:
        part = {"type": kind, "text": "a", kind: "a", "name": "a", **SAMPLES.get(kind, {})}
        said = {"role": "user", "content": [part]}
        with suppress(Exception):
            parse_chat_messages([said], model, "string")  # type: ignore[list-item]
            taken[CHATS].add(kind)
            endpoints.REQUESTS[RESPONSES].model_validate({"input": [said]})
            taken[RESPONSES].add(kind)
    listed = endpoints.parts_of(FILE, serving({}))

    assert {*listed[CHATS]} == taken[CHATS]
    assert {*listed[RESPONSES]} - {"output_text", "refusal"} == taken[RESPONSES]


@pytest.mark.parametrize(
    ("llm", "media"),
    [
        (serving({}, enable_prompt_embeds=True), {"prompt_embeds"}),
        (serving({"image": 2, "video": 0}), {"image_url", "input_image"}),
        (serving({"audio": 1}), {"audio_url", "input_audio"}),
        (serving({"vision_chunk": 9}), {"image_url", "input_image", "video_url"}),
        (serving({"image": 0}, embeds=True), {"image_embeds"}),
    ],
)
def test_media_are_listed_if_the_model_takes_them(llm: Any, media: set[str]) -> None:
    texts, listed = endpoints.parts_of(FILE, serving({})), endpoints.parts_of(FILE, llm)

    assert {*listed[CHATS]} - {*texts[CHATS]} == media
    assert {*listed[RESPONSES]} - {*texts[RESPONSES]} == media & {"input_image"}
    assert ("image" in listed[MESSAGES]) is ("input_image" in media)
    assert {"text", "thinking", "tool_use", "tool_result"} <= {*listed[MESSAGES]}


# Each field has a value with which tests/verifier/vllm_target/test_service.py asks both ends.

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


def requests() -> list[tuple[str, str, dict[str, Any]]]:
    """Return path, field and body of a request for each field of vLLM's classes."""
    return [
        (path, field, {**USUAL[path], **{**VALUES, **OF_PATH[path]}[field]})
        for path, of in endpoints.REQUESTS.items()
        for field in of.model_fields
    ]


def test_each_field_of_vllm_has_a_value_to_ask_both_ends_with() -> None:
    for path, field, body in requests():
        assert field in body or field == "model", (path, field)
