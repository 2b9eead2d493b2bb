"""A verifier or an edge is told to stop in the middle of an answer of real models."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator

import httpx
import pytest
from openai import OpenAI

from edge_agent.link.session import SILENCE_S
from local_models.store import open_store
from tests.end_to_end.fleet import (
    SETTINGS,
    Answer,
    Fleet,
    ask,
    gauge,
    verifier_of,
)
from tests.guards import GUARD_S

pytestmark = pytest.mark.models


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    open_store(os.environ).pull("smollm2", lambda what, done, total: None)
    started = Fleet()
    yield started
    started.end()


def two_verifiers(fleet: Fleet, drain_timeout_s: float) -> list[str]:
    urls = [fleet.verifier(drain_timeout_s=drain_timeout_s) for _ in range(2)]
    fleet.until_ready(*urls)
    return urls


@pytest.fixture(scope="module")
def only(fleet: Fleet) -> str:
    url = fleet.verifier()
    fleet.until_ready(url)
    return url


def edge(fleet: Fleet, *urls: str) -> str:
    url = fleet.edge(*urls, drain_timeout_s=60.0)
    fleet.until_ready(url)
    return url


def terminate(fleet: Fleet, url: str) -> None:
    fleet.processes[url].send_signal(signal.SIGTERM)


def draining(fleet: Fleet, edge_url: str, drained: list[str]) -> Callable[[], None]:
    """Return what tells the verifier of the edge's answer to stop."""

    def drain() -> None:
        drained.append(verifier_of(edge_url))
        terminate(fleet, drained[0])

    return drain


def ended(fleet: Fleet, url: str) -> int:
    return fleet.processes[url].wait(GUARD_S)


def test_what_a_verifier_cannot_finish_in_time_goes_on_at_the_other(fleet: Fleet) -> None:
    url = edge(fleet, *two_verifiers(fleet, 0.2))
    undisturbed, drained = ask(url, SETTINGS["shaped"], tokens=200), list[str]()

    answer = ask(url, SETTINGS["shaped"], draining(fleet, url, drained), tokens=200)

    assert answer == undisturbed
    assert gauge(url, "picospec:edge_reopened_answers_total") == {"": 1.0}
    assert ended(fleet, drained[0]) == 0


def test_with_time_enough_an_answer_finishes_where_it_is_and_new_ones_go_elsewhere(
    fleet: Fleet,
) -> None:
    url = edge(fleet, *two_verifiers(fleet, 60.0))
    undisturbed, drained = ask(url, SETTINGS["drawn"], tokens=200), list[str]()

    drain, others = draining(fleet, url, drained), list[Answer]()

    def drain_and_ask() -> None:
        drain()
        others.append(ask(url, SETTINGS["greedy"], tokens=16))

    answer = ask(url, SETTINGS["drawn"], drain_and_ask, tokens=200)

    assert answer == undisturbed
    assert others[0].error is None
    is_lost = answer.gap_s > SILENCE_S  # as on a busy machine, where the link may be silent
    assert is_lost or gauge(url, "picospec:edge_reopened_answers_total") == {"": 0.0}
    assert ended(fleet, drained[0]) == 0


def test_an_edge_that_drains_finishes_its_answer_and_takes_no_other(
    fleet: Fleet, only: str
) -> None:
    url = edge(fleet, only)
    undisturbed = ask(url, SETTINGS["drawn"], tokens=200)
    refused = list[httpx.Response]()

    def drain() -> None:
        terminate(fleet, url)
        time.sleep(0.1)
        body = {"messages": [{"role": "user", "content": "Hello"}]}
        refused.append(httpx.post(f"{url}/v1/chat/completions", json=body))
        refused.append(httpx.get(f"{url}/ready"))

    answer = ask(url, SETTINGS["drawn"], drain, tokens=200)

    assert answer == undisturbed
    assert [(r.status_code, r.json()["error"]["code"]) for r in refused] == [
        (503, "draining")
    ] * 2
    assert ended(fleet, url) == 0
    assert sum(gauge(only, "picospec:sessions_open").values()) == 0


def test_an_edge_told_twice_ends_its_answer_with_an_error_and_its_session(
    fleet: Fleet, only: str
) -> None:
    url = edge(fleet, only)

    def drain() -> None:
        terminate(fleet, url)
        time.sleep(0.1)
        terminate(fleet, url)

    answer = ask(url, SETTINGS["drawn"], drain, tokens=1000)

    assert answer.error is not None
    assert answer.error["code"] == "shutting_down"
    assert ended(fleet, url) == 0
    assert sum(gauge(only, "picospec:sessions_open").values()) == 0


def test_an_edge_that_drains_finishes_a_response_of_the_background_or_says_that_it_failed(
    fleet: Fleet, only: str
) -> None:
    for times, ends in ((1, ("completed", "incomplete")), (2, ("failed",))):
        url = edge(fleet, only)
        body = {"input": "Tell me a story.", "max_output_tokens": 400 * times}
        body["extra_body"] = {"ignore_eos": True}  # a story may end before it is stopped
        with (
            OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client,
            client.responses.create(**body, background=True, stream=True) as stream,  # type: ignore[call-overload]
        ):
            seen = [next(stream) for _ in range(10)]
            for _ in range(times):
                terminate(fleet, url)
                time.sleep(0.1)
            assert times == 2 or client.responses.retrieve(seen[0].response.id).output_text
            assert [*stream][-1].response.status in ends
        assert ended(fleet, url) == 0
