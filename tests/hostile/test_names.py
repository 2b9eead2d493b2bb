"""A name that comes from another machine becomes a path only if it has the form of a digest."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from picospec.models.digests import sha256_name, tokenizer_name
from picospec.models.errors import CannotOpen
from picospec.models.tokenizing.tokenizer_cache import TokenizerCache

NAMES = [
    "",
    ".",
    "..",
    "../secret",
    "/etc/passwd",
    "a/b",
    "secret",
    "{digest}\n",
    "{digest}/../../secret",
    "{digest}0",
    "\0{digest}",
    "A{digest}",
]


@pytest.mark.parametrize("check", [sha256_name, tokenizer_name])
@pytest.mark.parametrize("hostile", NAMES)
def test_a_name_of_another_form_is_refused(check: Callable[[str], str], hostile: str) -> None:
    digest = "0af9" * (16 if check is sha256_name else 8)
    name = hostile.format(digest=digest)

    assert check(digest) == digest
    for wrong in (name, digest.upper(), digest[:-1], digest[:-1] + "\u0663"):
        with pytest.raises(ValueError, match="hex digits"):
            check(wrong)


@pytest.mark.parametrize("hostile", NAMES)
def test_no_file_is_read_for_a_tokenizer_of_another_name(hostile: str, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"the user's")
    (tmp_path / "tokenizers").mkdir()

    with pytest.raises(CannotOpen, match="hex digits"):
        TokenizerCache(tmp_path / "tokenizers").find(hostile.format(digest="0af9" * 8))
