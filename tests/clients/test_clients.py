"""Real clients, unchanged: each runs in an environment of its own (`make test-clients`).

`pair` is a whole PicoSpec, edge and verifier, with the real Qwen2.5-Coder pair; `scripted` is
the gateway over a scripted model, where a client's loop must come to a known end.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from pydantic import BaseModel

from picospec.known_clients import Client, Edge, read_clients
from tests.clients.conftest import CLIENTS, python, run
from tests.clients.scripted_service import MODEL as SCRIPTED
from tests.edge_agent.processes import ROOT

PAIR = "qwen2.5-coder-1.5b"
pytestmark = pytest.mark.clients


class Person(BaseModel):
    name: str
    age: int


def result(*command: str | Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(run(*command).splitlines()[-1])
    return found


@pytest.fixture
def sdk(pair: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{pair}/v1", api_key="none", max_retries=0) as opened:
        yield opened


def test_openai_goes_on_from_a_response_that_is_kept(sdk: openai.OpenAI) -> None:
    responses = sdk.responses
    with responses.stream(
        model=PAIR, input="Ada is 36 years old.", text_format=Person, temperature=0
    ) as stream:
        kinds = {event.type for event in stream}
        first = stream.get_final_response()
    second = responses.create(
        model=PAIR, input="What is her name?", previous_response_id=first.id, temperature=0
    )

    assert first.output_parsed == Person(name="Ada", age=36)
    assert "response.output_text.delta" in kinds
    assert "Ada" in second.output_text
    assert responses.retrieve(second.id).output == second.output


def test_instructor_gets_objects_in_each_of_its_modes(pair: str) -> None:
    found = result(python("agents"), ROOT / "tests/clients/extract.py", pair, PAIR)

    assert all(person == {"name": "Ada", "age": 36} for person in found.values())
    assert len(found) == 3


def test_the_ai_sdk_streams_a_tool_call(pair: str) -> None:
    script = CLIENTS / "ai_sdk.mjs"
    script.write_text((ROOT / "tests/clients/ai_sdk.mjs").read_text())

    found = result("node", script, pair, PAIR)

    assert found["calls"][0]["toolName"] == "weather"
    assert found["finish"] == "tool-calls"
    assert {"tool-input-start", "tool-input-delta", "tool-call"} <= set(found["kinds"])
    assert found["tokens"] > 0


def test_the_ai_sdk_refers_to_items_of_responses(scripted: str) -> None:
    script = CLIENTS / "ai_sdk_responses.mjs"
    script.write_text((ROOT / "tests/clients/ai_sdk_responses.mjs").read_text())

    found = result("node", script, scripted, SCRIPTED)

    assert found["called"] == ["temperature_of Paris", "to_fahrenheit 21"]
    assert found["answer"] == "It is 69.8 degrees Fahrenheit in Paris."


def test_compatcanary_finds_nothing_missing_in_chat(pair: str) -> None:
    report = run(
        "npx", "compatcanary", "scan", "--base-url", f"{pair}/v1", "--model", PAIR,
        "--profile", "chat", "--timeout", "120", "--format", "json", "--fail-on", "any",
    )  # fmt: skip

    assert {probe["status"] for probe in json.loads(report)["results"]} == {"pass"}


@pytest.mark.parametrize("endpoint", ["chat", "responses"])
def test_the_agents_sdk_goes_through_two_tools_to_an_answer(
    scripted: str, endpoint: str
) -> None:
    script = ROOT / "tests/clients/two_tools.py"

    found = result(python("agents"), script, scripted, SCRIPTED, endpoint)

    loop = ["temperature_of Paris", "to_fahrenheit 21"]
    assert found["called"] == [*loop, *loop]
    assert found["answers"] == ["It is 69.8 degrees Fahrenheit in Paris."] * 2
    assert found["tokens"] > 0


# lm-eval asks for the log-probabilities of given answers. It knows nothing but the address and
# the model's name: the tokens of a text, too, come from the service.

FACTS = (
    ("The capital of France is", "Paris", "Rome", "Oslo"),
    ("Two and two make", "four", "five", "ten"),
    ("Fish live in", "water", "fire", "the sky"),
    ("The opposite of hot is", "cold", "loud", "green"),
    ("A week has", "seven days", "nine days", "forty days"),
    ("Bees make", "honey", "milk", "steel"),
    ("In Zürich people speak", "German", "Thai", "Finnish"),
    ("The sun rises in the", "east", "west", "kitchen"),
    ("def add(a, b):\n    return", "a + b", "a * b", "None"),
    ("Water freezes at zero", "degrees", "apples", "songs"),
    ("A triangle has", "three sides", "two sides", "eight sides"),
    ("日本の首都は", "東京です", "パリです", "ローマです"),
)


def evaluated(url: str, folder: Path) -> tuple[float, list[Any]]:
    """Return the share of FACTS that lm-eval finds known, and the scores of all answers."""
    folder.mkdir()
    data, task = folder / "facts.jsonl", {"task": "facts", "output_type": "multiple_choice"}
    items = ({"question": question, "choices": choices} for question, *choices in FACTS)
    data.write_text("\n".join(map(json.dumps, items)), "utf-8")
    task |= {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(data)}}}
    task |= {"test_split": "test", "metric_list": [{"metric": "acc"}]}
    task |= {"doc_to_text": "{{question}}", "doc_to_choice": "{{choices}}", "doc_to_target": 0}
    (folder / "facts.yaml").write_text(json.dumps(task), "utf-8")
    run(
        "env", "HF_HUB_OFFLINE=1", f"HF_HOME={folder}",
        python("lm-eval").with_name("lm_eval"), "run", "--model", "local-completions",
        "--model_args", f"base_url={url}/v1/completions,model={PAIR}", "--batch_size", "4",
        "--tasks", "facts", "--include_path", folder,
        "--log_samples", "--output_path", folder,
    )  # fmt: skip
    (results,), (samples,) = folder.rglob("results_*.json"), folder.rglob("samples_*.jsonl")
    lines = map(json.loads, samples.read_text("utf-8").splitlines())
    scores = [line["filtered_resps"] for line in lines]
    known: float = json.loads(results.read_text("utf-8"))["results"]["facts"]["acc,none"]
    return known, scores


def test_lm_eval_finds_equal_scores_at_an_edge_and_at_its_verifier(
    ends: tuple[str, str], tmp_path: Path
) -> None:
    edge, verifier = (evaluated(url, tmp_path / f"{i}") for i, url in enumerate(ends))

    assert edge == verifier
    assert edge[0] > 0.7
    assert len(edge[1]) == len(FACTS)


def test_inspect_has_an_answer_with_its_tokens_for_each_sample(
    pair: str, tmp_path: Path
) -> None:
    run(
        "env", f"PICOSPEC_BASE_URL={pair}/v1", "PICOSPEC_API_KEY=none",
        python("inspect-ai").with_name("inspect"), "eval", "capitals.py",
        "--model", f"openai-api/picospec/{PAIR}", "--temperature", "0", "--max-tokens", "16",
        "--log-format", "json", "--log-dir", tmp_path, "--display", "none",
        cwd=ROOT / "tests/clients",
    )  # fmt: skip
    (path,) = tmp_path.glob("*.json")
    log = json.loads(path.read_text("utf-8"))

    results, (used,) = log["results"], log["stats"]["model_usage"].values()
    assert log["status"] == "success"
    assert results["completed_samples"] == results["total_samples"] == len(log["samples"])
    assert results["scores"][0]["metrics"]["accuracy"]["value"] == 1
    assert used["input_tokens"] > 0
    assert used["output_tokens"] > 0


# Agents edit a file when `picospec launch` starts them, or once `connect` set them up. Each has
# a home of its own, where its settings name a service that is not there.

ASKED = "Greet in the evening."
AIDER = "--edit-format whole --yes-always --no-check-update --no-analytics --map-tokens 0"
AGENTS = {
    "codex": ["exec", "--dangerously-bypass-approvals-and-sandbox", ASKED],
    "opencode": ["run", ASKED],
    "aider": [*AIDER.split(), "--message", ASKED, "hello.py"],
    "continue": ["-p", "--auto", ASKED],
}
"""What each is told, to edit a file without a question."""

PICOSPEC = ROOT / ".venv/bin/picospec"
NOWHERE = Edge("http://127.0.0.1:9", "nothing", 4096, "none")


@pytest.fixture
def home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("home")
    programs = f"{CLIENTS / 'node_modules/.bin'}:{CLIENTS / 'aider/bin'}"
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    return folder


def files_of(client: Client) -> dict[Path, bytes]:
    paths = [path for part in client.parts if (path := part.path(os.environ))]
    return {path: path.read_bytes() for path in paths if path.exists()}


def with_other_settings(client: Client) -> dict[Path, bytes]:
    for part in client.parts:
        if path := part.path(os.environ):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(NOWHERE.fill(part))
    return files_of(client)


@pytest.mark.parametrize("name", AGENTS)
def test_an_agent_that_is_launched_edits_a_file_and_keeps_its_settings(
    name: str, scripted: str, repository: Path, home: Path
) -> None:
    client = read_clients()[name]
    before = with_other_settings(client)

    run(PICOSPEC, "launch", name, "--url", scripted, "--", *AGENTS[name], cwd=repository)

    assert "good evening" in (repository / "hello.py").read_text()
    assert files_of(client) == before


@pytest.mark.parametrize("name", AGENTS)
def test_an_agent_that_is_connected_edits_a_file_until_that_is_undone(
    name: str, scripted: str, repository: Path, home: Path
) -> None:
    client = read_clients()[name]
    before = with_other_settings(client) if client.parts[0].format != "yaml" else {}

    run(PICOSPEC, "connect", name, "--write", "--url", scripted)
    run(client.program, *AGENTS[name], cwd=repository)
    run(PICOSPEC, "connect", name, "--undo")

    assert "good evening" in (repository / "hello.py").read_text()
    assert files_of(client) == before
