"""A hub, a mirror of one, a catalogue or a verifier names no file outside the store."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import msgspec
import pytest

from local_models.catalogue import ModelFile, Wheel, parse_catalogue
from local_models.digests import sha256_name, tokenizer_name
from local_models.errors import CannotOpen, InvalidCatalogue, PullError, SourceFailed
from local_models.hub import Hub
from local_models.store import Store, open_store
from local_models.tokenizer_cache import TokenizerCache
from tests.local_models.hub_server import FakeHub

CONTENT: Final = b"GGUF of a stranger"
SHA256: Final = hashlib.sha256(CONTENT).hexdigest()
NAMES: Final = {
    "parent": "../../../victim/precious",
    "absolute": "{victim}",
    "NUL": "a\0b",
    "escape": "\x1b]0;title\x07",
    "a newline after it": f"{SHA256}\n",
    "backslash": "..\\..\\victim",
    "too long": "a" * 5000,
    "upper case": SHA256.upper(),
    "one digit short": SHA256[1:],
    "dots": "..",
}
"""What a hub says in place of a sha256, and as the folder of a file's name."""

DIGITS: Final = {"upper case", "one digit short"}
"""Those of them that only a sha256 may not be."""

FORMS: Final = [
    "", ".", "..", "../secret", "/etc/passwd", "a/b", "secret", "{digest}\n",
    "{digest}/../../secret", "{digest}0", "\0{digest}", "A{digest}",
]  # fmt: skip
"""Names of which none is a digest."""


@pytest.fixture
def victim(tmp_path: Path) -> Iterator[Path]:
    """A file of the user; it must stay as it is, and beside it nothing may appear."""
    file = tmp_path / "victim" / "precious"
    file.parent.mkdir()
    file.write_text("the user's own")

    yield file

    assert file.read_text() == "the user's own"
    assert {each.name for each in tmp_path.iterdir()} <= {"cache", "victim"}
    assert list(file.parent.iterdir()) == [file]


@pytest.fixture
def server(victim: Path) -> Iterator[FakeHub]:
    with FakeHub({"o/r": {"m-Q8_0.gguf": CONTENT}}).running() as running:
        yield running


@pytest.fixture
def store(server: FakeHub, tmp_path: Path) -> Store:
    (tmp_path / "cache").mkdir()
    return open_store({
        "PICOSPEC_CACHE": str(tmp_path / "cache"), "PICOSPEC_CONFIG_DIR": str(tmp_path),
        "HF_ENDPOINT": server.endpoint, "PICOSPEC_MODEL_SOURCES": "hub",
    })  # fmt: skip


def pull(store: Store) -> None:
    store.pull("o/r", lambda what, done, total: None)


def test_a_file_that_is_longer_than_the_hub_said_is_fetched_no_further(
    server: FakeHub, store: Store
) -> None:
    server.sent_instead = CONTENT + b"and more"

    with pytest.raises(SourceFailed, match=f"more than {len(CONTENT)} bytes"):
        pull(store)


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_a_sha256_of_another_form_is_no_path(
    server: FakeHub, store: Store, victim: Path, name: str
) -> None:
    server.digest = name.format(victim=victim)

    with pytest.raises(PullError, match="64 hex digits"):
        pull(store)

    assert not list(store.root.rglob("*.gguf"))


@pytest.mark.parametrize("name", [name for name in NAMES if name not in DIGITS])
def test_a_file_of_another_name_is_no_path(
    server: FakeHub, store: Store, victim: Path, name: str
) -> None:
    file = f"{NAMES[name].format(victim=victim)}/x-Q8_0.gguf"
    server.repositories = {"o/r": {file: CONTENT}}

    with pytest.raises(PullError, match="relative path"):
        pull(store)

    assert server.asked == []


def test_a_link_in_the_place_of_a_file_is_not_written_through(
    server: FakeHub, store: Store, victim: Path
) -> None:
    named = store.root / "hub" / "o" / "r" / "m-Q8_0.gguf"
    named.parent.mkdir(parents=True)
    named.symlink_to(victim)

    pull(store)

    assert named.read_bytes() == CONTENT


@pytest.mark.parametrize("says", ["etag", "commit", "listing"])
@pytest.mark.parametrize("name", ["../../../../victim/new", "{victim}.new", "..", ""])
def test_a_directory_for_vllm_comes_under_no_name_that_is_a_path(
    server: FakeHub, victim: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    says: str, name: str,
) -> None:  # fmt: skip
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    server.repositories = {"o/r": {"config.json": b"{}"}}
    setattr(server, {"etag": "digest", "listing": "digest"}.get(says, says),
            name.format(victim=victim) or ".")  # fmt: skip
    server.has_xet = says == "listing"

    with pytest.raises(PullError):
        Hub(server.endpoint).directory("o/r")


@pytest.mark.parametrize(
    "answer", ["[]", "null", '{"siblings": [{"rfilename": 5}]}', '{"siblings": [5]}', "<html>"]
)
def test_an_answer_of_another_form_is_one_clear_error(
    server: FakeHub, store: Store, victim: Path, answer: str
) -> None:
    server.description = answer.encode()

    with pytest.raises(PullError, match="o/r"):
        pull(store)


def test_no_value_has_a_name_of_another_form_however_it_is_made() -> None:
    model = ModelFile("a.gguf", repository="o/r", sha256=SHA256)

    for change in ({"sha256": "../x"}, {"file": "../x"}, {"repository": "../x"}):
        with pytest.raises(ValueError, match=r"\.\./x"):
            msgspec.structs.replace(model, **change)
    with pytest.raises(InvalidCatalogue):
        parse_catalogue('[models]\n"../x" = {file = "a.gguf", repository = "o/r"}')
    with pytest.raises(ValueError, match="wheel"):
        Wheel("--index-url=http://127.0.0.1/-1.0-py3-none-any.whl", SHA256)


@pytest.mark.parametrize("check", [sha256_name, tokenizer_name])
@pytest.mark.parametrize("hostile", FORMS)
def test_a_name_of_another_form_is_refused(check: Callable[[str], str], hostile: str) -> None:
    digest = "0af9" * (16 if check is sha256_name else 8)
    name = hostile.format(digest=digest)

    assert check(digest) == digest
    for wrong in (name, digest.upper(), digest[:-1], digest[:-1] + "\u0663"):
        with pytest.raises(ValueError, match="hex digits"):
            check(wrong)


@pytest.mark.parametrize("hostile", FORMS)
def test_no_file_is_read_for_a_tokenizer_of_another_name(hostile: str, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"the user's")
    (tmp_path / "tokenizers").mkdir()

    with pytest.raises(CannotOpen, match="hex digits"):
        TokenizerCache(tmp_path / "tokenizers").find(hostile.format(digest="0af9" * 8))
