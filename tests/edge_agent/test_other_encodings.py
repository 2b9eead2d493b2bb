"""Answers and requests whose text is Latin-1, which JSON does not allow."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from picospec.edge_agent.link.connection import Answer, from_answer
from picospec.edge_agent.link.uplink import Event, Uplink, VerifierStatus
from picospec.edge_agent.link.verifiers import Verifiers
from picospec.edge_agent.metrics import EdgeMetrics
from picospec.edge_agent.relay import _renamed
from picospec.gateway.errors import InvalidRequest, Unavailable
from tests.edge_agent.virtual import FACTS

WORN_OUT = b'"\xe9puis\xe9"'


class Answering:
    """A Connection that gives one answer to every request, and to GET /v1/model-facts that."""

    url, client = "http://verifier", None

    def __init__(self, answer: Answer, facts: bytes = b"") -> None:
        self.answer = answer
        self.facts = Answer(200, facts) if facts else answer

    async def ask(self, _: str, path: str, **__: object) -> Answer:
        return self.facts if path == "/v1/model-facts" else self.answer


def uplink(metrics: EdgeMetrics, number: int, answer: Answer, facts: bytes = b"") -> Uplink:
    connection: Any = Answering(answer, facts)
    return Uplink(connection, metrics, number)


def test_an_error_in_it_counts_by_its_status() -> None:
    error = from_answer(Answer(503, b'{"error":{"message":%b}}' % WORN_OUT))

    assert type(error) is Unavailable
    assert error.message == "the verifier is not ready: it answered 503"


@pytest.mark.parametrize(
    "facts", [b"", b'{"model":%b}' % WORN_OUT], ids=["every answer", "only the facts"]
)
async def test_the_other_verifier_is_used(metrics: EdgeMetrics, facts: bytes) -> None:
    failing = Answer(503, b'{"error":{"message":%b}}' % WORN_OUT)
    first = uplink(metrics, 0, Answer(200, b"{}") if facts else failing, facts)
    second = uplink(metrics, 1, Answer(200, b"{}"), msgspec.json.encode(FACTS))
    first.note(Event.IS_READY)
    verifiers = Verifiers([first, second], metrics, 5.0)

    assert (await verifiers.facts()).model == FACTS.model

    await verifiers.probe()
    assert verifiers.current is second
    assert first.endpoint.is_ready == bool(facts)


async def test_a_load_and_a_status_in_it_are_left_out(metrics: EdgeMetrics) -> None:
    only = uplink(metrics, 0, Answer(200, b'{"load":%b,"version":%b}' % (WORN_OUT, WORN_OUT)))

    await only.check()

    assert only.endpoint.load == 0
    assert await only.status() == VerifierStatus()


def test_a_relayed_request_in_it_is_the_clients_error() -> None:
    with pytest.raises(InvalidRequest, match="the body is no JSON"):
        _renamed(b'{"prompt":%b}' % WORN_OUT, "model")
