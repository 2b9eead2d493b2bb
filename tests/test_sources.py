"""Files keep rules that no linter knows, on secrets, decoders, tasks and imports of tests."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator

import pytest

from tests.edge_agent.processes import ROOT
from tests.guards import TESTS
from tests.sources import FILES

DECODERS = {
    *("msgspec.json.decode", "msgspec.msgpack.decode", "json.loads", "json.load"),
    *("msgspec.convert", "tomllib.load", "tomllib.loads", "ast.literal_eval"),
    *("pickle.load", "pickle.loads"),
}
METHODS = {"raw_decode"}
"""Pydantic's are none: it limits how deeply JSON nests, and all its errors are a ValueError."""

TRUSTED = {
    "speculation/untrusted.py": "the decoder",
    "speculation/codecs.py": "bounds of a message, whose fields were read one by one",
    "gateway/endpoints/responses_handlers.py": "responses that this process has kept",
    "gateway/output/message.py": "a JSON string that an expression has matched",
    "gateway/output/formats/pythonic.py": "a model's text; it names what is wrong",
    "gateway/ports.py": "extras of a request that was read",
    "gateway/operator_fields.py": "a client's body; each failure is an InvalidRequest",
    "gateway/keys.py": "the operator's file",
    "edge_agent/metering.py": "one object of a text with more; it names what is wrong",
    "local_models/file_hashes.py": "a file of this program",
    "local_models/catalogue.py": "the operator's file, or one of this program",
    "local_models/dequantise.py": "files that this program has written",
    "local_models/hugging_face.py": "files of the operator, or what was tried in confinement",
    "local_models/renderer.py": "what goes to a confined process, and its answers",
    "local_models/trial.py": "what a confined process gets",
    "verifier/__main__.py": "the operator's command",
    "verifier/vllm_target/ipc_messages.py": "what another process of this service has packed",
}
"""Files that decode by other means, and what. The command and the bench decode files, and
answers of services, of whoever runs them."""

TASKS = {"gateway/background_work.py", "verifier/llama_target/scheduler.py"}
"""Files that begin a task otherwise than by `gateway.background_work.start`: it, and one that
looks at how the task ends."""

SERVICES = [
    (str(path.relative_to(ROOT)), ast.parse(path.read_text()))
    for path in FILES
    if path.relative_to(ROOT).parts[0] not in ("bench", "picospec")
]


def names(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Name | ast.Attribute):
            yield ast.unparse(node)


def decoders(tree: ast.AST) -> set[str]:
    return {n for n in names(tree) if n in DECODERS or n.rpartition(".")[2] in METHODS}


def test_what_others_write_is_decoded_in_one_file() -> None:
    found = {path for path, tree in SERVICES if decoders(tree)}

    assert found == TRUSTED.keys()


def test_a_task_that_nobody_looks_at_is_begun_nowhere() -> None:
    begin = {"asyncio.create_task", "loop.create_task"}
    found = {path for path, tree in SERVICES if begin & {*names(tree)}}

    assert found == TASKS


@pytest.mark.parametrize("code", ["json.loads(a)", "b(msgspec.json.decode(a, type=C))"])
def test_a_decoder_is_found(code: str) -> None:
    assert decoders(ast.parse(code))


IMPORT = r"^ *(?:from|import) (tests[\w.]*)(?: import (\([^)]*\)|.*))?"


def test_no_test_file_is_imported() -> None:
    """What two of them use stands in a file beside them, and an import names it."""
    files = {path: path.relative_to(ROOT).with_suffix("") for path in TESTS.rglob("*.py")}
    modules = {".".join(path.parts) for path in files.values() if path.name[:5] == "test_"}
    wrong = []
    for file in files:
        for module, names in re.findall(IMPORT, file.read_text(), re.MULTILINE):
            imported = {module, *(f"{module}.{name}" for name in re.findall(r"\w+", names))}
            wrong += [f"{file}: {each}" for each in imported & modules]

    assert modules
    assert wrong == []


SECRETS = re.compile(
    rb"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----\s+[A-Za-z0-9+/]{32}"
    rb"|\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"  # AWS
    rb"|\bgh[pousr]_[A-Za-z0-9]{36}|\bgithub_pat_\w{60}"
    rb"|\bhf_[A-Za-z0-9]{30}"
    rb"|\bsk-(?:proj-|ant-|or-)?[A-Za-z0-9_-]{40}"
    rb"|\bAIza[A-Za-z0-9_-]{35}"  # Google
    rb"|\bxox[abprs]-[A-Za-z0-9-]{20}"  # Slack
    rb"|\bpypi-AgEI[A-Za-z0-9_-]{20}"
    rb"|\b(?:sk|rk)_live_[A-Za-z0-9]{20}"
)


@pytest.mark.system
def test_no_file_holds_a_secret() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False
    )
    if listed.returncode:
        pytest.skip("this is no checkout")
    files = [ROOT / name for name in listed.stdout.decode().split("\0") if name]

    found = [file for file in files if file.is_file() and SECRETS.search(file.read_bytes())]

    assert len(files) > 100
    assert found == []


@pytest.mark.parametrize(
    "secret",
    [
        b"-----BEGIN RSA PRIVATE KEY-----\n" + b"A" * 64,
        b"hf_" + b"a" * 34,
        b"key = 'sk-proj-" + b"a1" * 24 + b"'",
        b"ghp_" + b"a" * 36,
        b"AKIA" + b"A" * 16,
    ],
)
def test_a_secret_is_found(secret: bytes) -> None:
    assert SECRETS.search(secret)
