"""Calls the model hub. Only this module imports huggingface_hub.

The import takes 0.3 s, which most commands do not need, so it happens inside the functions.

HF_ENDPOINT names another hub. HF_TOKEN is a token that is sent only to the hub, and not to the
targets of its redirects. Downloads go to the store's own file, because hf_hub_download deletes
an interrupted one, and the next pull would start from its first byte.
"""

from __future__ import annotations

import errno
import functools
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from picospec.models.catalogue import ModelFile
from picospec.models.digests import file_name, sha256_name
from picospec.models.errors import SourceFailed, WrongHash
from picospec.models.fetching.sources import Progress

if TYPE_CHECKING:
    import httpx2

_CONNECT_S: Final = 3.0
"""A slower connection attempt is given up, so that a machine without access to the hub soon
tries the next source."""

_NO_HUB: Final = (ValueError, TypeError, KeyError, AttributeError)
"""huggingface_hub and this module raise these for a malformed answer of a hub."""

DIRECTORY_FILES: Final = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.txt", "*.py")
"""vLLM needs these files of a repository."""


class Hub:
    """Fetches files of the hub's repositories as a Source, and lists them."""

    name = "hub"

    def __init__(self, endpoint: str | None = None, token: str | None = None) -> None:
        self._endpoint = endpoint.rstrip("/") if endpoint else None
        self._token = token

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
            found = get_hf_file_metadata(
                url, token=self._token, timeout=_CONNECT_S, endpoint=self._endpoint
            )
            etag, sha256 = found.etag or "", model.sha256
            if sha256 and len(etag) == len(sha256) and etag != sha256:  # the etag is a sha256
                raise WrongHash(f"{model.repository} has a file of sha256 {etag}, not {sha256}")
            with partial.open("ab") as file:
                done, size = file.tell(), found.size or model.bytes
                report = functools.partial(_Report, progress, done, size)
                http_get(
                    url,
                    file,
                    resume_size=done,
                    headers=build_hf_headers(token=self._token),
                    expected_size=found.size,
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
        found = json.loads(response.read())
        files = found if isinstance(found, list) else []
        names = [file["lfs"]["oid"] for file in files if file.get("lfs")]
        names += [] if isinstance(found, list) else [found["sha"]]
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
