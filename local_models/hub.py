"""A Hub lists a repository of the model hub, and fetches its files or metadata, by public
functions of the hub's library.

HF_ENDPOINT names another hub. HF_TOKEN is a token that is sent only to the hub, and not to the
targets of its redirects. A download goes to the store's own file, because `hf_hub_download`
deletes an unfinished one, and the next pull would begin with its first byte.

The import of huggingface_hub takes 0.3 s, which most commands do not need, so it happens inside
the functions.
"""

from __future__ import annotations

import errno
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from local_models.catalogue import ModelFile
from local_models.digests import file_name, sha256_name
from local_models.errors import ModelError, SourceFailed, Unreachable, WrongHash
from local_models.gguf import metadata_in
from local_models.progress import Progress
from speculation.untrusted import decode_json

_LISTING_S: Final = 3.0
"""The hub must begin to answer what a repository has within this time, so that a machine that
does not reach the hub soon tries the next source."""

_SILENT_S: Final = 10.0
"""While a file is read, the hub may send nothing for this long: the library's own default."""

_FIRST_BYTES: Final = 4 << 20
_LAST_BYTES: Final = 64 << 20
"""The metadata of a GGUF file is looked for in this many of its first bytes, then in twice as
many, up to the last of these."""

DIRECTORY_FILES: Final = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.txt", "*.py")
"""vLLM needs these files of a repository."""

_NAMING: Final = ("etag", "x-linked-etag", "x-repo-commit")
"""These response headers name files and folders in hf's cache."""


class Hub:
    """Fetches files of the hub's repositories as a Source, and lists them."""

    name = "hub"

    def __init__(self, endpoint: str | None = None, token: str | None = None) -> None:
        self._endpoint = endpoint.rstrip("/") if endpoint else None
        self._host = self._endpoint or "https://huggingface.co"
        self._token = token

    def where(self, model: ModelFile) -> str:
        """Implements Source.where."""
        return f"{self._host}/{model.repository}" if model.repository else ""

    def files(self, repository: str) -> dict[str, ModelFile]:
        """Return the repository's GGUF files by their names. Raises SourceFailed."""
        from huggingface_hub import HfApi

        with self._failures(repository):
            info = HfApi(self._endpoint, self._token).model_info(
                repository, files_metadata=True, timeout=_LISTING_S
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
        if not model.repository:
            raise SourceFailed("the model has no repository on the hub")
        listed = self.files(model.repository).get(model.file)
        if listed is None:
            raise SourceFailed(f"{model.repository} has no {model.file}")
        if model.sha256 and listed.sha256 not in ("", model.sha256):
            raise WrongHash(f"{model.repository} has a file of sha256 {listed.sha256}")
        size = listed.bytes or model.bytes
        with self._failures(model.repository), partial.open("ab") as file:
            while not size or file.tell() < size:
                before = file.tell()
                try:
                    for piece in self._bytes(model, before):
                        if 0 < size < file.tell() + len(piece):  # it might fill the disk
                            raise SourceFailed(f"the hub sends more than {size} bytes")
                        file.write(piece)
                        progress("downloading", file.tell(), size)
                    return
                except (OSError, ModelError):
                    raise
                except Exception:  # the connection broke; what it brought is kept
                    if file.tell() == before:
                        raise

    def metadata(self, model: ModelFile) -> bytes:
        """Return the metadata of a GGUF file of the hub, as a GGUF file without tensors.

        Only the file's first megabytes are read. Raises SourceFailed.
        """
        data, enough = bytearray(), _FIRST_BYTES
        with self._failures(model.repository), closing(self._bytes(model, 0)) as pieces:
            for piece in pieces:
                data += piece
                if len(data) >= _LAST_BYTES:
                    break
                if len(data) >= enough:
                    enough *= 2
                    with suppress(ValueError):  # it goes on
                        return metadata_in(bytes(data))
            return metadata_in(bytes(data))

    def directory(self, repository: str) -> Path:
        """Download vLLM's files of a repository, with a bar; return the folder in hf's cache.

        Raises SourceFailed.
        """
        from huggingface_hub import get_session, snapshot_download

        hooks = get_session().event_hooks["response"]
        if _check_names not in hooks:
            hooks.append(_check_names)
        with self._failures(repository):
            place: str = snapshot_download(
                repository,
                allow_patterns=list(DIRECTORY_FILES),
                endpoint=self._endpoint,
                token=self._token,
            )
        return Path(place)

    def _bytes(self, model: ModelFile, start: int) -> Generator[bytes, None, None]:
        """Yield a file's bytes from an offset on."""
        from huggingface_hub import get_session, get_token, hf_hub_url, hf_raise_for_status

        headers = {"accept-encoding": "identity"}
        if start:
            headers["range"] = f"bytes={start}-"
        if token := self._token or get_token():
            headers["authorization"] = f"Bearer {token}"
        url = hf_hub_url(model.repository, model.file, endpoint=self._endpoint)
        with get_session().stream(
            "GET", url, headers=headers, follow_redirects=True, timeout=_SILENT_S
        ) as answer:
            hf_raise_for_status(answer)
            known = start if answer.status_code == 200 else 0  # a mirror may know no ranges
            for piece in answer.iter_bytes():
                yield piece[known:]
                known = max(0, known - len(piece))

    @contextmanager
    def _failures(self, repository: str) -> Iterator[None]:
        """Raise what fails at the hub or in its answer as SourceFailed; a full disk stays."""
        from huggingface_hub import errors

        try:
            yield
        except errors.GatedRepoError as error:
            reason = f"accept its terms at huggingface.co/{repository}, and set HF_TOKEN"
            raise SourceFailed(f"{repository}: {reason}") from error
        except errors.HfHubHTTPError as error:
            status = error.response.status_code
            hint = "; is it private (HF_TOKEN)?" if status in (401, 403, 404) else ""
            raise SourceFailed(f"{repository}: HTTP {status}{hint}") from error
        except ModelError:
            raise
        except Exception as error:  # of the library and its HTTP client, in any version
            if isinstance(error, OSError) and error.errno == errno.ENOSPC:
                raise
            reason = f"no usable answer of the hub {self._host}: {error}"
            raise Unreachable(f"{repository}: {reason}") from error


def _check_names(response: Any) -> None:  # noqa: ANN401 - of the library's HTTP client
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
