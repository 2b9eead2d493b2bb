"""LoRA adapters, which requests name as their `model`, as they do in vLLM.

The text of an adapter has an identity of its own: a digest of the model's, of the adapter's
name, and of its files. vLLM keeps its KV apart by name and path.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from picospec.models.errors import WrongHash
from picospec.models.file_hashes import FileHashes
from picospec.models.tokenizing.hugging_face import commit_of
from picospec.speculation.protocol.facts import MAX_ADAPTERS
from picospec.verifier.identity import identity_of, weights_of

if TYPE_CHECKING:  # vLLM is not there in every installation
    from vllm.lora.request import LoRARequest


@dataclass(slots=True)
class Adapters:
    """loaded: vLLM's own list, by name; it changes while vLLM runs."""

    loaded: Mapping[str, LoRARequest]
    hashes: FileHashes
    _known: dict[str, str] = field(default_factory=dict)

    @property
    def have_changed(self) -> bool:
        """Whether others are loaded than `identities` has seen."""
        return self._paths() != self._known

    def identities(self, model: str, download_dir: str | None) -> dict[str, str]:
        """Return the identity of each adapter's texts, by name. It reads the adapters' files.

        model: the identity of the model's. download_dir: where vLLM keeps what it fetches.
        """
        self._known = self._paths()
        found = {}
        for name, path in islice(self._known.items(), MAX_ADAPTERS):
            try:
                files: object = path, commit_of(path, None, download_dir)
                if Path(path).is_dir():
                    files = weights_of(Path(path), self.hashes)
                found[name] = identity_of(model, name, files)
            except (OSError, WrongHash) as error:
                log = structlog.get_logger("verifier")
                log.warning("no sessions for an adapter", adapter=name, error=str(error))
        return found

    def _paths(self) -> dict[str, str]:
        return {name: request.lora_path for name, request in self.loaded.items()}
