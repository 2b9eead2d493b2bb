"""Makes the target that the settings ask for: only this module knows the implementations."""

from __future__ import annotations

import os
from pathlib import Path

from models.store import Store, open_store
from verifier.llama_target.target import LlamaTarget
from verifier.metrics import PassMetrics
from verifier.settings import VerifierSettings
from verifier.target import Target
from verifier.vllm_target.service.settings import VllmSettings
from verifier.vllm_target.service.target import VllmTarget


def make_target(settings: VerifierSettings, metrics: PassMetrics) -> Target:
    """Return the target that the settings ask for, not started.

    Raises models.errors.ModelError for a model that is not there.
    """
    store = open_store(os.environ)
    if settings.target == "vllm":
        table = dict(settings.vllm)
        if "vocabulary" in table:
            table["vocabulary"] = _resolve(table["vocabulary"], None, store)[1]
        name = settings.served_name or settings.model.rstrip("/").rsplit("/", 1)[-1]
        options = VllmSettings.of(settings.model, table)
        return VllmTarget(name, options, settings.limits, metrics)
    name, path = _resolve(settings.model, settings.served_name, store)
    return LlamaTarget(name, path, settings.llama, settings.limits, metrics)


def _resolve(model: str, served_name: str | None, store: Store) -> tuple[str, Path]:
    """Return the name clients use and the path of the GGUF file.

    model: a path; or a name in the catalogue, of a pair (its target is meant), a variant or a
    model. Clients know a variant by its model's name. Raises UnknownModel or NotPulled.
    """
    path = Path(model)
    if path.suffix == ".gguf" or path.is_file():
        return served_name or path.stem, path
    catalogue = store.catalogue
    name = catalogue.pairs[model].target if model in catalogue.pairs else model
    return served_name or catalogue.recipe(name).model, store.path(name)
