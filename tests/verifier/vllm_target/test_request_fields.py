"""Each field of vLLM's own API is drafted under at an edge, or proxied, or listed here."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gateway.answer_fields import NEUTRAL
from gateway.endpoints.chat import ChatRequest
from gateway.endpoints.completions import CompletionRequest
from gateway.endpoints.messages import MessagesRequest
from gateway.endpoints.responses import ResponsesRequest
from gateway.schema import RequestModel
from local_models.tokenizer_file import TokenizerFile
from tests.verifier.vllm_target.request_values import (
    CHATS,
    COMPLETIONS,
    MESSAGES,
    RESPONSES,
)

pytest.importorskip("vllm")
request_fields = pytest.importorskip("verifier.vllm_target.serving.request_fields")

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
"""By themselves these change no text, so an edge ignores them; with a field that is proxied
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
    theirs = set(request_fields.REQUESTS[path].model_fields)
    listed = set(request_fields.fields_of(FILE)[path])
    of_a_chat = set() if "completions" in path else {*ChatRequest.model_fields}
    drafted = {*ours.model_fields} | of_a_chat
    proxied = listed & NEUTRAL.keys()

    assert theirs - drafted - proxied <= NOT_LISTED | REFINING
    assert theirs - listed <= NOT_LISTED | {"background", "previous_response_id"}


def test_documents_that_no_template_shows_are_not_listed() -> None:
    for file, expected in ((FILE, True), (TokenizerFile("huggingface", b""), False)):
        listed = request_fields.fields_of(file)[CHATS]
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
            request_fields.REQUESTS[RESPONSES].model_validate({"input": [said]})
            taken[RESPONSES].add(kind)
    listed = request_fields.parts_of(FILE, serving({}))

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
    texts, listed = (
        request_fields.parts_of(FILE, serving({})),
        request_fields.parts_of(FILE, llm),
    )

    assert {*listed[CHATS]} - {*texts[CHATS]} == media
    assert {*listed[RESPONSES]} - {*texts[RESPONSES]} == media & {"input_image"}
    assert ("image" in listed[MESSAGES]) is ("input_image" in media)
    assert {"text", "thinking", "tool_use", "tool_result"} <= {*listed[MESSAGES]}
