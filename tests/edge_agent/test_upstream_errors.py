"""What the edge makes of errors of the network and of a verifier that turns it away."""

from __future__ import annotations

import httpx
import pytest

from picospec.edge_agent.link.connection import Connection
from picospec.edge_agent.link.upstream_errors import (
    LinkDown,
    from_response,
    reason,
    unreachable,
)
from picospec.gateway.errors import ApiError, EngineFault, Forbidden, Overloaded, RateLimited
from picospec.gateway.http.responses import error_response


async def test_a_sessions_name_is_in_no_error_of_the_transport_that_is_shown() -> None:
    connection = Connection("http://127.0.0.1:9", key=None, ca_certificate=None)
    with pytest.raises(httpx.TransportError, match="name-of-it") as raised:
        await connection.client.get("/v1/speculate/name-of-it?from=3")
    with pytest.raises(LinkDown) as posted:
        await connection.post("name-of-it", b"", {})
    await connection.close()

    shown = [reason(raised.value), str(posted.value), str(unreachable("u", raised.value))]
    assert "name-of-it" not in str(shown)
    assert shown[0].startswith("ConnectError: ")
    assert "/v1/speculate/*" in shown[0]


def answer(error: ApiError) -> httpx.Response:
    """The verifier's answer of that error."""
    sent = error_response(error)
    return httpx.Response(sent.status_code, headers=sent.headers, content=bytes(sent.body))


def test_a_limit_of_the_edges_key_is_told_to_its_client_with_when_to_come_back() -> None:
    error = from_response(answer(RateLimited("this key may have 2 answers", retry_after_s=7)))

    assert isinstance(error, Overloaded)
    assert (error.retry_after_s, error.message) == (7, "this key may have 2 answers")


def test_a_verifier_that_does_not_go_by_this_name_does_not_refuse_the_key() -> None:
    error = from_response(answer(Forbidden("this Host is not one of the service's names")))

    assert isinstance(error, EngineFault)
    assert error.error_code == "host_not_allowed"
    assert "PICOSPEC_VERIFIER_KEY" not in error.message
