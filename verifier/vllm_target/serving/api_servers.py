"""vLLM with several API servers (--api-server-count), each with sessions of its own.

They share both ports, and the kernel hands each connection to one of them. An edge has one
connection of HTTP/2 to our port, so all it sends reaches one process. To vLLM's port it has
several, by which its drafts would reach other processes than its session: it is refused there.
"""

from __future__ import annotations

from typing import NoReturn

from starlette.requests import Request
from starlette.routing import Route

from picospec.gateway.errors import ApiError


class Misdirected(ApiError):
    """RFC 9110, 15.5.20."""

    status, type, code = 421, "invalid_request_error", "several_api_servers"


def for_vllms_port(routes: list[Route], api_servers: int, port: int) -> list[Route]:
    """Return the routes. With several API servers those for edges lead nowhere, and say so.

    port: ours.
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
