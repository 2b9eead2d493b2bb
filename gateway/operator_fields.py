"""A client's request loses the fields of vLLM's API that are an operator's."""

from __future__ import annotations

from typing import Final

import msgspec

from gateway.errors import InvalidRequest

OPERATORS: Final = frozenset(
    {"kv_transfer_params", "ec_transfer_params", "priority", "request_id", "session_id"}
)
"""These fields of vLLM's API are an operator's: where KV comes from, whose request is first,
and by which name it is known. No request that is passed on has them."""


def without_operators(body: bytes) -> bytes:
    """Return the JSON object of a body without the fields in OPERATORS; the same bytes if it
    has none. Raises InvalidRequest for any other body, where another parser may find them."""
    try:
        fields = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    except (ValueError, RecursionError):
        raise InvalidRequest("the body is no JSON object", code="invalid_json") from None
    if OPERATORS.isdisjoint(fields):
        return body
    return msgspec.json.encode({n: v for n, v in fields.items() if n not in OPERATORS})
