"""This entry point of `vllm.endpoint_plugins` adds sessions to vLLM's API server, on two ports.

* vLLM's own port gets the session routes, guarded by vLLM's --api-key if it has one.
* Our port serves the same routes and vLLM's whole API over HTTP/2, behind our keys, limits, TLS
  and host names. vLLM knows one key; a request that we let in is forwarded with it.

The engine exists before `init_state`, which tests it: a failure there ends vLLM before it
listens. A SIGTERM to vLLM starts a drain, and its server ends only after that.
"""

from __future__ import annotations

import logging
import os
import re
import signal
from argparse import Namespace
from collections.abc import AsyncGenerator, Collection, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, NoReturn, get_args

import msgspec
import structlog
import vllm.envs as envs
from fastapi import FastAPI
from prometheus_client import REGISTRY, Metric
from prometheus_client.registry import Collector, CollectorRegistry
from pydantic import SecretStr
from starlette.applications import Starlette
from starlette.datastructures import State
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from vllm.entrypoints.anthropic.protocol import (
    AnthropicContentBlock,
    AnthropicMessagesRequest,
)
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.entrypoints.openai.responses.protocol import ResponsesRequest
from vllm.platforms import current_platform
from vllm.renderers.chat_utils import MM_PARSER_MAP, load_chat_template
from vllm.renderers.hf import (
    HfRenderer,
    resolve_chat_template,
    resolve_chat_template_content_format,
)
from vllm.v1.engine.async_llm import AsyncLLM

from gateway.access import Access, is_open
from gateway.answer_fields import OPERATORS, without_operators
from gateway.app import HANDLERS, with_request_contexts
from gateway.documents import VERSION
from gateway.drain import Drain
from gateway.endpoints.bodies import body_limit_bytes
from gateway.endpoints.rendering import PATH
from gateway.errors import ApiError, NotFound
from gateway.hosting import logs
from gateway.hosting.server import check_free, served_alongside
from gateway.hosting.strangers import check_listening, hosts_of
from gateway.http import error_response, json_response
from gateway.json_bounds import SMALL_BYTES, check_structure
from gateway.metrics import WithoutCreatedSeries
from gateway.request_body import read_body
from gateway.tenant_limits import TenantMetrics
from gateway.tenants import Tenants
from gateway.turns import ThreadTurns
from local_models.file_hashes import FileHashes
from local_models.store import open_store
from local_models.template import joined
from local_models.tokenizer_file import TokenizerFile
from verifier.app import VerifierService
from verifier.metrics import VerifierMetrics
from verifier.routes import OPEN, SESSION_PATHS, takes_drafts
from verifier.settings import VerifierSettings
from verifier.vllm_target.ipc_messages import RunnerChoice
from verifier.vllm_target.patches import PATCHES
from verifier.vllm_target.plugin import settings as read_settings
from verifier.vllm_target.serving import rendering
from verifier.vllm_target.serving.engine import VllmEngine
from verifier.vllm_target.serving.plain import PlainRequests, charge
from verifier.vllm_target.serving.target import VllmTarget

# Bounds a body that arrives on our port before vLLM parses it in its only event loop.
#
# vLLM makes objects of the whole body, whatever it contains: 60 MB of `{},` would take minutes,
# and more memory than most hosts have. So would the tokens of 60 MB of text.

MAX_WAITING: Final = 32
"""This many large bodies of one tenant, each of 64 MiB at most, may wait to be counted."""

_NO_JSON: Final = "multipart/form-data"
"""Bodies with audio files have this media type."""


@dataclass(frozen=True, slots=True)
class Bodies:
    context_tokens: int
    takes_media: bool
    """True if bodies may contain images, which may be larger than any text."""

    counting: ThreadTurns = field(
        default_factory=partial(ThreadTurns, 1, MAX_WAITING, "bodies wait to be counted")
    )

    async def taken(self, scope: Scope, receive: Receive) -> Receive:
        """Read a request's body; return a `receive` from which an app reads it again, without
        the fields that are an operator's.

        Raises InvalidRequest for more values than any client sends, and for what is no JSON
        object; Overloaded, or the errors of `read_body`: TooLarge for more text than the
        context holds.
        """
        if is_open(scope["path"]):  # vLLM reads no body there, and no key is needed
            return receive
        request = Request(scope, receive)
        is_json = not request.headers.get("content-type", "").lower().startswith(_NO_JSON)
        is_text = is_json and (not self.takes_media or scope["path"].endswith("/tokenize"))
        limit_bytes = body_limit_bytes(self.context_tokens) if is_text else None
        body = await read_body(request, limit_bytes)
        if is_json and len(body) > SMALL_BYTES:
            tenant = scope["state"]["context"].tenant
            body = await self.counting.run(tenant, partial(_checked, body))
        elif is_json and body:
            body = without_operators(body)
        unread: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def again() -> Message:
            return unread.pop() if unread else await receive()

        return again


def _checked(body: bytes) -> bytes:
    check_structure(body)
    return without_operators(body)


# Finds how vLLM's own server renders a chat, and its default settings. They are packed with the
# tokenizer, so that an edge makes the same prompt.

_A_TOOL: Final[list[dict[str, Any]]] = [{}]
_ALWAYS_GIVEN: Final = frozenset({"add_generation_prompt", "continue_final_message"})
"""Each request to vLLM sets these variables of a template itself."""


def as_served(file: TokenizerFile, llm: AsyncLLM, args: Namespace) -> TokenizerFile:
    """Return a model's tokenizer as vLLM's server uses it. args: vLLM's command line."""
    renderer, model = llm.renderer, llm.vllm_config.model_config
    template_variables = args.default_chat_template_kwargs or {}
    return msgspec.structs.replace(
        file,
        **_template(renderer, model, args),
        variables={
            name: each for name, each in template_variables.items() if name not in _ALWAYS_GIVEN
        },
        hides_unused_tools=args.exclude_tools_when_tool_choice_none,
        stop_tokens=sorted(_stop_tokens(renderer.get_eos_token_id(), model)),
        defaults=_defaults(model),
    )


def _template(renderer: Any, model: Any, args: Namespace) -> dict[str, Any]:
    """Return the template and whether it takes message parts. If vLLM uses another template for
    tools, the two are joined into one."""
    if type(renderer) is not HfRenderer or "GptOssForCausalLM" in model.architectures:
        return {"template": rendering.template_of(renderer, args)}
    named, tokenizer = load_chat_template(args.chat_template), renderer.get_tokenizer()
    default, with_tools = (
        resolve_chat_template(tokenizer, named, tools, model_config=model) or ""
        for tools in (None, _A_TOOL)
    )
    form = resolve_chat_template_content_format(
        named, None, args.chat_template_content_format, tokenizer, model_config=model
    )
    one = default if default == with_tools else joined(default, with_tools)
    return {"template": one, "takes_parts": form == "openai"}


def _stop_tokens(eos: int | None, model: Any) -> set[int]:
    """Return the tokens that end a turn, by the tokenizer and by the model's makers."""
    end_tokens = model.try_get_generation_config().get("eos_token_id")
    named = end_tokens if isinstance(end_tokens, list) else [end_tokens]
    return {token for token in (*named, eos) if token is not None}


def _defaults(model: Any) -> Mapping[str, float]:
    """Return the default settings, with the limit on an answer's tokens if there is one."""
    parameters = model.get_diff_sampling_param().items()
    defaults = {name: value for name, value in parameters if not isinstance(value, bool)}
    own = model.generation_config in ("auto", "vllm")
    limits = model.override_generation_config if own else defaults
    most = limits.get("max_new_tokens" if own else "max_tokens")
    return defaults if most is None else {**defaults, "most_tokens": most}


# Lists the fields of requests that vLLM's own API serves: an edge proxies a request with one
# that it cannot serve itself.

REQUESTS: Final = {
    "/v1/chat/completions": ChatCompletionRequest,
    "/v1/completions": CompletionRequest,
    "/v1/responses": ResponsesRequest,
    "/v1/messages": AnthropicMessagesRequest,
}
_NO_CLIENTS: Final = OPERATORS.union(
    # These serve other paths than the one to which the request is sent.
    ("mm_payload", "return_mm_kwargs", "return_token_offsets"),
    # An edge keeps responses itself, and vLLM knows no tenants.
    ("background", "previous_response_id"),
)


def fields_of(
    file: TokenizerFile, *, renders: bool = False, scores_ids: bool = True
) -> dict[str, list[str]]:
    """Return the fields of requests to each path of vLLM's API. file: the model's tokenizer, as
    vLLM's server uses it. A field that vLLM would ignore is left out. renders: True if paths
    exist that only render a prompt (--enable-scale-out); they have no lists of their own.
    scores_ids: see Charging."""
    shows_documents = rendering.is_by_code(file) or "documents" in file.template
    unseen = _NO_CLIENTS if shows_documents else {*_NO_CLIENTS, "documents"}
    unseen = unseen if scores_ids else {*unseen, "logprob_token_ids"}
    listed = {path: sorted({*of.model_fields} - unseen) for path, of in REQUESTS.items()}
    more = {f"{path}/render": [] for path in REQUESTS} if renders else {}
    return listed | more | rendering.listed(file)


_IN_RESPONSES: Final = {"input_text", "input_image", "output_text", "refusal"}
PARTS: Final = {
    "/v1/chat/completions": MM_PARSER_MAP.keys() - {"image_pil"},  # which JSON cannot express
    "/v1/responses": MM_PARSER_MAP.keys() & _IN_RESPONSES,
    "/v1/messages": {*get_args(AnthropicContentBlock.model_fields["type"].annotation)},
}
"""Some model may take content parts of these types."""


def parts_of(file: TokenizerFile, llm: AsyncLLM) -> dict[str, list[str]]:
    """Return the types of content parts that the model takes, by path. vLLM would refuse any
    other, or leave it out. file: the model's tokenizer, as vLLM's server uses it."""
    model, processor = llm.vllm_config.model_config, llm.renderer.mm_processor
    limits = processor.info.allowed_mm_limits if processor else {}
    taken = {medium for medium, most in limits.items() if most}
    if "vision_chunk" in taken:
        taken |= {"image", "video"}
    if processor and model.multimodal_config.enable_mm_embeds:
        taken |= {f"{medium}_embeds" for medium in limits}
    taken |= {"prompt_embeds"} if model.enable_prompt_embeds else set()
    shows = not file.takes_parts or "tool_reference" in file.template
    taken |= {"tool_reference"} if shows else set()
    return {
        path: sorted(kind for kind in kinds if _needed_for(kind) in {None, *taken})
        for path, kinds in PARTS.items()
    }


def _needed_for(kind: str) -> str | None:
    """Return what a model must take to take parts of a type; None for a text, which any does:
    `image` for `image_url`."""
    if kind.endswith("_embeds") or kind == "tool_reference":
        return kind
    return next((each for each in ("image", "audio", "video") if each in kind), None)


# Inside vLLM's API server the verifier's service has two apps that share the sessions.


class VllmService(VerifierService):
    """Runs in vLLM. settings: ours. args: vLLM's command line. Raises OSError or ValueError."""

    def __init__(
        self,
        settings: VerifierSettings,
        llm: AsyncLLM,
        vllm_app: FastAPI,
        args: Namespace,
        drain: Drain,
    ) -> None:
        keys = [key for key in (args.api_key or [envs.VLLM_API_KEY]) if key]
        if keys and not settings.needs_key:
            secrets = tuple(map(SecretStr, keys))
            settings = settings.model_copy(update={"api_keys": secrets})
        check_listening(settings)
        make = partial(_target, settings, llm, args, vllm_app.state)
        on_cpu = current_platform.is_cpu()
        super().__init__(settings, make, drain, device="cpu" if on_cpu else "gpu")
        make_prompt = rendering.Rendering(vllm_app.state.online_renderer)
        routes = [
            *self.routes,
            Route("/status", self._status),
            Route(PATH, make_prompt.prompt, methods=["POST"]),
        ]
        of_tenants = TenantMetrics(self.registry)
        limits = settings.key_limits
        tenants = Tenants(settings.key_digests, settings.keys_file, limits, of_tenants)
        known_to_vllm = Tenants((), None, limits, of_tenants) if keys else tenants

        def app(routes: list[Route], of: Tenants, hosts: Collection[str] | None) -> Starlette:
            access = Access(SESSION_PATHS, takes_drafts, hosts, tracing=self.tracing)
            before = with_request_contexts(settings, of, self.metrics, access)
            routed_app = Starlette(
                routes=routes, middleware=before, exception_handlers=HANDLERS
            )
            routed_app.router.redirect_slashes = False
            return routed_app

        shown = _for_vllms_port(routes, llm.engine_core.client_count, settings.port)
        on_vllms = app(shown, known_to_vllm, None)
        on_ours = app(routes, tenants, hosts_of(settings))
        model = llm.vllm_config.model_config
        bodies = Bodies(model.max_model_len, model.is_multimodal_model)
        on_ours.router.default = partial(_pass_on, vllm_app, bodies, keys[0] if keys else None)
        self.on_vllms_port = partial(_serve, on_vllms, args.root_path or "")
        self.on_our_port = partial(_serve, on_ours, args.root_path or "")

    async def _status(self, _: Request) -> Response:
        """Answer with the status that an edge shows of its verifier."""
        state = "ok" if self.host.state == "ready" else self.host.state
        about = await self.sessions.about()
        return json_response({"status": state, "version": VERSION, **about})


def _target(
    settings: VerifierSettings,
    llm: AsyncLLM,
    args: Namespace,
    state: State,
    metrics: VerifierMetrics,
) -> VllmTarget:
    """Return the target, not started. It has the name of vLLM's model, and also tries the
    grammars of requests to vLLM's own API."""
    if (choice := RunnerChoice.of(llm.vllm_config)) is None:
        raise ValueError("vLLM did not load picospec's general plugin; its log says why")
    is_first = llm.engine_core.client_index == 0
    model = (args.served_model_name or [args.model])[0]
    target = VllmTarget(
        model,
        VllmEngine(llm),
        msgspec.structs.replace(settings.limits, max_verify=choice.max_verify),
        metrics,
        adapters=state.openai_serving_models.lora_requests,
        as_served=partial(as_served, llm=llm, args=args),
        fields=partial(
            fields_of,
            renders=getattr(args, "enable_scale_out", False),
            scores_ids=llm.vllm_config.use_v2_model_runner,
        ),
        parts=partial(parts_of, llm=llm),
        share_prefixes=settings.share_prefixes,
        keeps_answers=settings.speculation.keep_answers,
        hashes=FileHashes(open_store(os.environ).root.with_name("hashes.json")),
        self_test=settings.vllm.get("self_test", True) if is_first else None,
    )
    shared, most = settings.share_prefixes, settings.max_choices
    charge(llm, target, model, max_choices=most, share_prefixes=shared)
    return target


async def _serve(app: ASGIApp, prefix: str, scope: Scope, receive: Receive, send: Send) -> None:
    """Serve a request with --root-path, which is vLLM's, removed from its path."""
    path = scope.get("path", "").removeprefix(prefix)
    await app({**scope, "path": path, "root_path": ""}, receive, send)


PASSED: Final = re.compile(
    r"/v[12]/(?!load_lora_adapter$|unload_lora_adapter$).*"
    r"|/(tokenize|detokenize|tokenizer_info|invocations|classify|score|rerank|pooling"
    r"|generative_scoring|version|ping|health|metrics|docs|openapi\.json)"
)
"""Our port passes on requests to these paths of vLLM's. Others, such as those that scale, pause
or reset its engine or load an adapter, are an operator's, who finds them on vLLM's port."""


async def _pass_on(
    app: ASGIApp, bodies: Bodies, key: str | None, scope: Scope, receive: Receive, send: Send
) -> None:
    """Forward a request that was let in to vLLM's app, with vLLM's key if it has one."""
    if not PASSED.fullmatch(scope["path"]):
        return await error_response(NotFound("there is nothing here"))(scope, receive, send)
    inner_scope = {
        name: value for name, value in scope.items() if name not in ("app", "router")
    }
    if key is not None:
        others = [pair for pair in scope["headers"] if pair[0] != b"authorization"]
        inner_scope["headers"] = [*others, (b"authorization", f"Bearer {key}".encode())]
    await app(inner_scope, await bodies.taken(scope, receive), send)


class Misdirected(ApiError):
    """The request reached a server that cannot answer it: RFC 9110, 15.5.20."""

    status, type, code = 421, "invalid_request_error", "several_api_servers"


def _for_vllms_port(routes: list[Route], api_servers: int, port: int) -> list[Route]:
    """Return the routes of vLLM's port. With several API servers (--api-server-count) those for
    edges answer 421: each server has its own sessions, all share both ports, and the kernel
    gives each connection to one of them. On vLLM's port an edge has several connections, so its
    drafts would reach other servers than its session; on ours it has one HTTP/2 connection.

    port: PicoSpec's own.
    """
    if api_servers == 1:
        return routes

    async def refuse(_: Request) -> NoReturn:
        raise Misdirected(
            f"vLLM runs {api_servers} API servers, of which each would get a part of a session:"
            f" use port {port}, over HTTP/2, or --api-server-count 1"
        )

    return [
        Route(each.path, refuse, methods=each.methods) if "/v1/" in each.path else each
        for each in routes
    ]


PATHS: Final = (
    f"{OPEN}/{{path:path}}", OPEN, "/ready", "/status", "/v1/model-facts", "/v1/tokenizer",
    PATH,
)  # fmt: skip
"""These paths are ours on vLLM's port; /health and /metrics there are vLLM's own."""


class Endpoints:
    """Implements vllm.plugins.endpoint_plugins.interface.EndpointPlugin."""

    name = "picospec"
    required_tasks = ("generate",)

    def attach_router(self, app: FastAPI) -> None:
        """Put our routes before vLLM's, and our lifespan inside its server's."""
        self._app, self._drain = app, Drain()
        app.add_middleware(PlainRequests, drain=self._drain)
        app.router.routes[:0] = [
            Route(path, self, methods=["GET", "POST", "DELETE"]) for path in PATHS
        ]
        original = app.router.lifespan_context

        @asynccontextmanager
        async def lifespan(server_app: FastAPI) -> AsyncGenerator[Any]:
            async with original(server_app) as state, self._living():
                yield state

        app.router.lifespan_context = lifespan

    async def init_state(self, engine_client: AsyncLLM, state: State, args: Namespace) -> None:
        """Open the engine to sessions. Raises SystemExit, which ends vLLM."""
        try:
            settings = read_settings()
            shared = (args.api_server_count or 1) > 1
            check_free("verifier", settings.host, settings.port, shared=shared)
            logs.configure(settings.log_format)
            self.service = VllmService(settings, engine_client, self._app, args, self._drain)
        except (OSError, ValueError) as error:
            raise SystemExit(f"settings: {error}") from error
        if why := await self.service.host.load():
            raise SystemExit(f"picospec: {why}")
        runner = "v2" if engine_client.vllm_config.use_v2_model_runner else "v1"
        replaced = sorted({each.target for each in PATCHES if each.runner in (None, runner)})
        structlog.get_logger("verifier").info("vllm_patched", patches=replaced)
        REGISTRY.register(_Of(self.service.registry))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve our routes on vLLM's port, as an ASGI app."""
        await self.service.on_vllms_port(scope, receive, send)

    @asynccontextmanager
    async def _living(self) -> AsyncGenerator[None]:
        """Serve our port while vLLM's server runs, and drain before it ends."""
        service = self.service
        # the access log would contain sessions' names, which are secrets
        logging.getLogger("uvicorn.access").addFilter(lambda r: OPEN not in r.getMessage())
        port = served_alongside(service.settings, service.on_our_port)
        running = service.running(self._end, at_once=signal.SIGINT, second_is_at_once=True)
        async with running, port:
            yield
        if service.host.is_lost:  # vLLM noticed it first, and would end with status 0
            os._exit(1)

    def _end(self) -> None:
        if self.service.host.is_lost:
            os._exit(1)  # vLLM's processes end with this one, even those that hang
        self._app.state.server.should_exit = True


class _Of(Collector):
    """Shows our registry in vLLM's /metrics, which already has the process metrics."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def collect(self) -> Iterator[Metric]:
        shown = WithoutCreatedSeries(self._registry).collect()
        return (each for each in shown if each.name.startswith("picospec"))
