"""What the edge makes of errors of the network and of a verifier that turns it away."""

from __future__ import annotations

import json

import pytest

from picospec.edge_agent.link.connection import Connection
from picospec.edge_agent.link.upstream_errors import Answer, LinkDown, from_answer, unreachable
from picospec.gateway.errors import (
    ApiError,
    Draining,
    EngineFault,
    Forbidden,
    InvalidRequest,
    NotFound,
    Overloaded,
    RateLimited,
    TooLarge,
    Unavailable,
)
from picospec.gateway.http.responses import error_response


async def test_a_sessions_name_is_in_no_error_that_is_shown() -> None:
    refused = Connection("http://127.0.0.1:9", key=None, ca_certificate=None)
    nowhere = Connection("http://no-such-host.invalid", key=None, ca_certificate=None)
    for connection in (refused, nowhere):
        with pytest.raises(LinkDown) as raised:
            await connection.post("name-of-it", b"", {})

        assert "name-of-it" not in str(raised.value)

    quoted = OSError("error sending request for url (http://h/v1/speculate/name-of-it/drafts)")
    assert "/v1/speculate/*/drafts" in str(unreachable("http://h", quoted))


@pytest.mark.parametrize(
    ("status", "code", "error", "told"),
    [
        (429, "overloaded", Overloaded, "overloaded"),
        (409, "vocabulary_mismatch", EngineFault, "vocabulary_mismatch"),
        (409, "identity_mismatch", Unavailable, "identity_mismatch"),
        (404, "model_not_found", NotFound, "model_not_found"),
        (400, "invalid_value", InvalidRequest, "invalid_value"),
        (401, "invalid_api_key", EngineFault, "verifier_unauthorized"),
        (503, "loading", Unavailable, "verifier_unavailable"),
        (503, "draining", Draining, "draining"),
        (413, "too_large", TooLarge, "too_large"),
    ],
)
def test_what_a_verifier_answers_is_an_error_with_the_reason(
    status: int, code: str, error: type[ApiError], told: str
) -> None:
    body = {"error": {"message": "no", "type": "x", "param": "p", "code": code}}

    found = from_answer(Answer(status, json.dumps(body).encode(), ""))

    assert type(found) is error
    assert found.error_code == told


def answer(error: ApiError) -> Answer:
    """The verifier's answer of that error."""
    sent = error_response(error)
    return Answer(sent.status_code, bytes(sent.body), sent.headers.get("retry-after", ""))


def test_a_limit_of_the_edges_key_is_told_to_its_client_with_when_to_come_back() -> None:
    error = from_answer(answer(RateLimited("this key may have 2 answers", retry_after_s=7)))

    assert isinstance(error, Overloaded)
    assert (error.retry_after_s, error.message) == (7, "this key may have 2 answers")


def test_a_verifier_that_does_not_go_by_this_name_does_not_refuse_the_key() -> None:
    error = from_answer(answer(Forbidden("this Host is not one of the service's names")))

    assert isinstance(error, EngineFault)
    assert error.error_code == "host_not_allowed"
    assert "PICOSPEC_VERIFIER_KEY" not in error.message
