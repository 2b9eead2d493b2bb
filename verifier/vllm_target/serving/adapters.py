"""Serves LoRA adapters, which requests name as their `model`, as in vLLM.

The texts of an adapter have their own identity: a digest of the model's identity, the
adapter's name, and its files. vLLM keeps the adapters' KV apart by name and path.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from local_models.errors import WrongHash
from local_models.file_hashes import FileHashes
from local_models.hugging_face import commit_of
from speculation.model_facts import MAX_ADAPTERS
from verifier.identity import identity_of, weights_of

if TYPE_CHECKING:
    from vllm.lora.request import LoRARequest


@dataclass(slots=True)
class Adapters:
    """Finds the identities of adapters. loaded: vLLM's own mapping, by name; it changes."""

    loaded: Mapping[str, LoRARequest]
    hashes: FileHashes
    _known: dict[str, str] = field(default_factory=dict)

    @property
    def have_changed(self) -> bool:
        """True if other adapters are loaded than at the last call of `identities`."""
        return self._paths() != self._known

    def identities(self, model: str, download_dir: str | None) -> dict[str, str]:
        """Return the identity of each adapter's texts, by name. This reads the adapters' files.

        model: the model's identity. download_dir: the folder where vLLM keeps downloads.
        """
        self._known = self._paths()
        by_adapter = {}
        for name, path in islice(self._known.items(), MAX_ADAPTERS):
            try:
                files: object = path, commit_of(path, None, download_dir)
                if Path(path).is_dir():
                    files = weights_of(Path(path), self.hashes)
                by_adapter[name] = identity_of(model, name, files)
            except (OSError, WrongHash) as error:
                log = structlog.get_logger("verifier")
                log.warning("no sessions for an adapter", adapter=name, error=str(error))
        return by_adapter

    def _paths(self) -> dict[str, str]:
        return {name: request.lora_path for name, request in self.loaded.items()}
