"""Inside vLLM's API server the verifier's service has two apps that share the sessions.

* vLLM's own port gets the session routes, guarded by vLLM's --api-key if it has one.
* Our port serves the same routes and vLLM's whole API over HTTP/2, behind our keys, limits, TLS
  and host names. vLLM knows one key; a request that we let in is forwarded with it.
"""

from __future__ import annotations

import os
import re
from argparse import Namespace
from collections.abc import Collection
from functools import partial
from typing import Final, NoReturn

import msgspec
import vllm.envs as envs
from fastapi import FastAPI
from pydantic import SecretStr
from starlette.applications import Starlette
from starlette.datastructures import State
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send
from vllm.platforms import current_platform
from vllm.v1.engine.async_llm import AsyncLLM

from gateway.access import Access
from gateway.app import HANDLERS, with_request_contexts
from gateway.documents import VERSION
from gateway.drain import Drain
from gateway.endpoints.rendering import PATH
from gateway.errors import ApiError, NotFound
from gateway.hosting.strangers import check_listening, hosts_of
from gateway.http import error_response, json_response
from gateway.tenant_limits import TenantMetrics
from gateway.tenants import Tenants
from local_models.file_hashes import FileHashes
from local_models.store import open_store
from local_models.tokenizer_file import TokenizerFile
from verifier.app import VerifierService
from verifier.metrics import VerifierMetrics
from verifier.routes import SESSION_PATHS, takes_drafts
from verifier.settings import VerifierSettings
from verifier.vllm_target.runner_choice import RunnerChoice
from verifier.vllm_target.serving.bodies import Bodies
from verifier.vllm_target.serving.engine import VllmEngine
from verifier.vllm_target.serving.plain import charge
from verifier.vllm_target.serving.rendering import Rendering
from verifier.vllm_target.serving.request_fields import fields_of, parts_of
from verifier.vllm_target.serving.served_tokenizer import as_served
from verifier.vllm_target.serving.target import Served, VllmTarget


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
        rendering = Rendering(vllm_app.state.online_renderer)
        routes = [
            *self.routes,
            Route("/status", self._status),
            Route(PATH, rendering.prompt, methods=["POST"]),
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
        as_served=partial(_served, llm, args),
        owners=settings.owners,
        hashes=FileHashes(open_store(os.environ).root.with_name("hashes.json")),
        self_test=settings.vllm.get("self_test", True) if is_first else None,
    )
    shared, most = settings.share_prefixes, settings.max_choices
    charge(llm, target, model, max_choices=most, share_prefixes=shared)
    return target


def _served(llm: AsyncLLM, args: Namespace, file: TokenizerFile) -> Served:
    file = as_served(file, llm, args)
    renders = getattr(args, "enable_scale_out", False)
    scores_ids = llm.vllm_config.use_v2_model_runner
    fields = fields_of(file, renders=renders, scores_ids=scores_ids)
    return Served(file, fields, parts_of(file, llm))


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
