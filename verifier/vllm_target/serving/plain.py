"""Adds accounting and draining to vLLM's own API.

A request on our port has a RequestContext, which counts its tokens as vLLM generates them; its
KV is reused for its tenant only; its choices are limited, and its grammar is tried like those
of sessions. vLLM alone handles requests on its port, except that they too end when the service
drains."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from contextvars import ContextVar
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final

import msgspec
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from vllm.exceptions import GracefulHTTPError, VLLMValidationError
from vllm.outputs import RequestOutput
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.async_llm import AsyncLLM

from gateway.drain import Drain
from gateway.errors import ApiError, Overloaded
from gateway.http import error_response
from gateway.output.detokenise import TextDelta
from gateway.request_context import RequestContext
from local_models.constraints import NAME, Constraint
from speculation.messages import FinishReason
from verifier.identity import identity_of
from verifier.routes import OPEN
from verifier.target import Target, Unservable, unservable
from verifier.vllm_target import patcher
from verifier.vllm_target.patches import Original


@dataclass(slots=True)
class _Asking:
    context: RequestContext
    choices: int = 0
    """This many choices run, over all prompts of the request."""


_ASKING: Final[ContextVar[_Asking | None]] = ContextVar("picospec_asking", default=None)
"""This task answers this request."""


class PlainRequests:
    """Wraps vLLM's app as middleware. A running POST counts as one answer of its tenant."""

    def __init__(self, app: ASGIApp, drain: Drain) -> None:
        self._app = app
        self._drain = drain

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST" or OPEN in scope["path"]:
            return await self._app(scope, receive, send)
        context: RequestContext | None = scope.get("state", {}).get("context")
        begun = False

        async def noting(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            async with self._drain.answer():
                if context is not None:
                    context.begin_answers(1)
                _ASKING.set(None if context is None else _Asking(context))
                await self._app(scope, receive, noting)
        except ApiError as error:
            failed = error if context is None else context.failed(error)
            if not begun:  # otherwise the answer is cut off
                await error_response(failed)(scope, receive, send)


def charge(
    llm: AsyncLLM, target: Target, model: str, *, max_choices: int, share_prefixes: bool
) -> None:
    """Charge the tokens that an engine generates to the requests' contexts, and limit these
    requests. target: tries their grammars. model: its name in metrics."""
    is_v2 = llm.vllm_config.use_v2_model_runner
    charging = Charging(target, model, max_choices, share_prefixes, scores_ids=is_v2)
    patcher.apply("accounts", ours=charging, llm=llm)


@dataclass(frozen=True, slots=True)
class Charging:
    target: Target
    model: str
    max_choices: int
    share_prefixes: bool
    scores_ids: bool
    """False on Model Runner V1, whose engine dies of `logprob_token_ids` in a step with draft
    tokens: vLLM's rejection sampler takes the few log-probabilities for whole rows."""

    def generate(
        self, original: Original, prompt: Any, sampling_params: Any, *args: Any, **kwargs: Any
    ) -> AsyncGenerator[RequestOutput]:
        """Return what vLLM generates, and count it while it is read."""
        if not self.scores_ids and sampling_params.logprob_token_ids is not None:
            return _unscored()
        if (asking := _ASKING.get()) is None:
            return original(prompt, sampling_params, *args, **kwargs)
        owner = asking.context.tenant.identity
        if not self.share_prefixes and isinstance(prompt, dict):
            user_salt = prompt.get("cache_salt")
            salt = owner
            if user_salt is not None:  # as for sessions, so a user's prefixes serve both
                salt = identity_of(owner, msgspec.json.encode(user_salt))
            prompt = {**prompt, "cache_salt": salt}
        outputs = original(prompt, sampling_params, *args, **kwargs)
        return self._charged(asking, sampling_params, outputs)

    async def _charged(
        self, asking: _Asking, params: Any, outputs: AsyncGenerator[RequestOutput]
    ) -> AsyncGenerator[RequestOutput]:
        context, counted = asking.context, dict[int, int]()
        asking.choices += params.n
        try:
            if asking.choices > (most := self.max_choices):
                raise VLLMValidationError(f"more than {most} choices", parameter="n")
            await _check(self.target, params.structured_outputs, context.tenant.identity)
            async with aclosing(outputs):
                async for output in outputs:
                    if not counted:
                        context.serve(self.model, None, "text_completion")
                        context.took_prompt(len(output.prompt_token_ids or ()))
                    for choice in output.outputs:
                        new = len(choice.token_ids)
                        if params.output_kind is not RequestOutputKind.DELTA:
                            new -= counted.get(choice.index, 0)
                        finish = _ENDINGS.get(choice.finish_reason)
                        context.count(choice.index, TextDelta("", new, finish=finish))
                        counted[choice.index] = len(choice.token_ids)
                    yield output
        finally:
            asking.choices -= params.n


async def _unscored() -> AsyncGenerator[RequestOutput]:
    name = "logprob_token_ids"
    raise VLLMValidationError(f"{name} needs Model Runner V2 beside sessions", parameter=name)
    yield


_ENDINGS: Final[Mapping[str | None, FinishReason]] = {"stop": "stop", "length": "length"}


async def _check(target: Target, wanted: Any, tenant: str) -> None:
    """Try a grammar, unless vLLM made it of a structural tag. Raises vLLM's errors."""
    constraints = {kind: getattr(wanted, kind, None) for kind in Constraint.__struct_fields__}
    if isinstance(constraints["json"], str):
        constraints["json"] = msgspec.Raw(constraints["json"].encode())
    if not (
        constraints := {kind: each for kind, each in constraints.items() if each is not None}
    ):
        return
    try:
        with unservable():
            await target.grammars.check(msgspec.json.encode(constraints), tenant)
    except Unservable as error:
        raise VLLMValidationError(error.reason, parameter=NAME) from error
    except Overloaded as error:
        raise GracefulHTTPError(str(error), HTTPStatus.SERVICE_UNAVAILABLE) from error
