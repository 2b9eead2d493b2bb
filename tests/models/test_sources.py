"""The hub and the folder are resumed, and fail quickly."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from models.catalogue import ModelFile
from models.errors import SourceFailed
from models.sources import Folder, Hub

URL = "https://hub.test/{repository}/{file}"


def silent(what: str, done: int, total: int) -> None:
    pass


class Server:
    """Serves one file, and ranges of it unless `ranges` is false."""

    def __init__(self, content: bytes, ranges: bool = True) -> None:
        self.content = content
        self.ranges = ranges
        self.sent_bytes = 0
        self.paths: list[str] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.paths.append(request.url.path)
        start = int(request.headers.get("range", "bytes=0-")[6:-1]) if self.ranges else 0
        self.sent_bytes += len(self.content) - start
        return httpx.Response(206 if start else 200, content=self.content[start:])


def test_the_hub_is_asked_for_the_file_in_its_repository(
    model: ModelFile, tmp_path: Path, content: bytes
) -> None:
    server = Server(content)

    Hub(URL, httpx.MockTransport(server)).fetch(model, tmp_path / "partial", silent)

    assert server.paths == ["/someone/toy/toy.gguf"]
    assert (tmp_path / "partial").read_bytes() == content


@pytest.mark.parametrize("ranges", [True, False])
def test_a_beginning_is_completed_and_only_the_rest_is_sent_if_the_hub_can(
    model: ModelFile, tmp_path: Path, content: bytes, ranges: bool
) -> None:
    partial = tmp_path / "partial"
    partial.write_bytes(content[:1000])
    server = Server(content, ranges)

    Hub(URL, httpx.MockTransport(server)).fetch(model, partial, silent)

    assert partial.read_bytes() == content
    assert server.sent_bytes == len(content) - (1000 if ranges else 0)


def test_a_cut_keeps_what_has_arrived(model: ModelFile, tmp_path: Path, content: bytes) -> None:
    class Cut(httpx.SyncByteStream):
        def __iter__(self) -> Iterator[bytes]:
            yield content[:2000]
            raise httpx.ReadError("cut")

    partial = tmp_path / "partial"
    cut = httpx.MockTransport(lambda request: httpx.Response(200, stream=Cut()))
    with pytest.raises(SourceFailed, match="cut"):
        Hub(URL, cut).fetch(model, partial, silent)

    Hub(URL, httpx.MockTransport(Server(content))).fetch(model, partial, silent)

    assert partial.read_bytes() == content


def test_a_hub_without_the_file_has_failed(model: ModelFile, tmp_path: Path) -> None:
    missing = httpx.MockTransport(lambda request: httpx.Response(404))

    with pytest.raises(SourceFailed, match="HTTP 404"):
        Hub(URL, missing).fetch(model, tmp_path / "partial", silent)

    assert not (tmp_path / "partial").exists()


def test_a_hub_that_cannot_be_reached_has_failed(model: ModelFile, tmp_path: Path) -> None:
    def unreachable(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectTimeout("nobody there")

    with pytest.raises(SourceFailed, match="nobody there"):
        Hub(URL, httpx.MockTransport(unreachable)).fetch(model, tmp_path / "p", silent)


def test_a_folder_gives_a_copy_of_its_file(
    model: ModelFile, tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "toy.gguf").write_bytes(content)

    Folder(tmp_path).fetch(model, tmp_path / "partial", silent)

    assert (tmp_path / "partial").read_bytes() == content
    assert (tmp_path / "toy.gguf").exists()


def test_a_folder_without_the_file_or_no_folder_has_failed(
    model: ModelFile, tmp_path: Path
) -> None:
    for folder in (Folder(tmp_path), Folder(None)):
        with pytest.raises(SourceFailed):
            folder.fetch(model, tmp_path / "partial", silent)
