"""No file of the repository holds a key of a service, or a private key."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
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
