"""Answers POST /tokenize and /detokenize, with the fields of llama-server and of vLLM.

If the two servers differ, the field with the text decides: `content` is llama-server's, and
`prompt` and `messages` are vLLM's.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Annotated

from pydantic import Field, ValidationInfo, field_validator
from starlette.requests import Request
from starlette.responses import Response

from gateway.endpoints.bodies import checked, parse
from gateway.endpoints.chat import ChatRequest
from gateway.endpoints.completions import text_of
from gateway.endpoints.messages_schema import ChatMessage
from gateway.endpoints.parameters import parameters_of
from gateway.endpoints.services import Services
from gateway.errors import InvalidRequest, PromptTooLong
from gateway.http import json_response
from gateway.ports import Facts, GatewayTokenizer
from gateway.prompt_reader import BoundedTokenizer
from gateway.request_context import context_of
from gateway.schema import FIRST_ERROR, Flag, Integer, RequestModel, missing


class TokenizeRequest(RequestModel):
    model: str | None = None
    content: str | None = None
    messages: Annotated[tuple[ChatMessage, ...], FIRST_ERROR] = ()
    prompt: Annotated[str | None, Field(validate_default=True)] = None
    add_special: Flag = False
    add_special_tokens: Flag = True
    parse_special: Flag = True
    with_pieces: Flag = False
    return_token_strs: Flag = False

    @field_validator("prompt")
    @classmethod
    def _is_the_only_text(cls, value: str | None, info: ValidationInfo) -> str | None:
        others = [info.data.get("content") is not None, bool(info.data.get("messages"))]
        if value is None and not any(others):
            missing()
        if others.count(True) + (value is not None) > 1:
            raise ValueError("give one of prompt, messages and content")
        return value

    @property
    def field(self) -> str:
        """Return the field that errors about the text refer to."""
        return "messages" if self.messages else "prompt" if self.content is None else "content"

    def tokenise(self, tokenizer: GatewayTokenizer) -> Sequence[int]:
        if self.content is not None:
            special, begin = self.parse_special, self.add_special
            return tokenizer.encode(self.content, special=special, begin=begin)
        return tokenizer.encode(self.prompt or "", begin=self.add_special_tokens)


class DetokenizeRequest(RequestModel):
    model: str | None = None
    tokens: Annotated[tuple[Integer, ...], FIRST_ERROR]


async def tokenize(services: Services, request: Request) -> Response:
    """Answer with the tokens of a text or of a chat."""
    context = context_of(request)
    context.begin_answers(1)  # it takes what an answer's prompt does
    body = await parse(TokenizeRequest, services, request)
    backend, facts = await services.find(context, body.model)
    source = await backend.tokenizer(facts.vocabulary)
    tokenizer = BoundedTokenizer(source, facts, body.field)
    chat = await parse(ChatRequest, services, request) if body.messages else None
    if chat is not None:
        await checked(services, request, partial(parameters_of, chat, facts))
    answer = partial(_tokens_answer, body, chat, facts, tokenizer)
    return await services.reader.read(context.tenant, answer)


async def detokenize(services: Services, request: Request) -> Response:
    """Answer with the text of tokens; special tokens are spelt out."""
    context = context_of(request)
    context.begin_answers(1)
    body = await parse(DetokenizeRequest, services, request)
    backend, facts = await services.find(context, body.model)
    tokenizer = await backend.tokenizer(facts.vocabulary)
    answer = partial(_text_answer, body.tokens, facts, tokenizer)
    return await services.reader.read(context.tenant, answer)


def _tokens_answer(
    body: TokenizeRequest, chat: ChatRequest | None, facts: Facts, tokenizer: GatewayTokenizer
) -> Response:
    tokens = chat.tokenise(tokenizer)[0] if chat is not None else body.tokenise(tokenizer)
    pieces: list[str] = []
    if body.with_pieces or body.return_token_strs:
        _check_count(len(tokens), facts, body.field)
        pieces = [text_of([token], tokenizer) for token in tokens]
    named = [{"id": id, "piece": piece} for id, piece in zip(tokens, pieces, strict=False)]
    answer = {
        "tokens": named if body.with_pieces else tokens,
        "count": len(tokens),
        "max_model_len": facts.context_tokens,
        "token_strs": pieces if body.return_token_strs else None,
    }
    return json_response(answer)


def _text_answer(tokens: Sequence[int], facts: Facts, tokenizer: GatewayTokenizer) -> Response:
    _check_count(len(tokens), facts, "tokens")
    for index, token in enumerate(tokens):
        if not 0 <= token < facts.vocabulary_size:
            raise InvalidRequest(f"no such token: {token}", param=f"tokens.{index}")
    text = text_of(tokens, tokenizer)
    return json_response({"content": text, "prompt": text})


def _check_count(tokens: int, facts: Facts, field: str) -> None:
    """Raise InvalidRequest if the texts of more tokens are requested than the context has: such
    an answer may have a hundred times the bytes of its request."""
    if tokens > facts.context_tokens:
        reason = f"the context has {facts.context_tokens} tokens; these are {tokens}"
        raise InvalidRequest.of(field, reason, PromptTooLong.code)
