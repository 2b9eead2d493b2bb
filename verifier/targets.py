"""Which target serves: the one place that knows the implementations."""

from __future__ import annotations

import os

from models.store import open_store
from verifier.llama_target import LlamaTarget
from verifier.metrics import PassMetrics
from verifier.naming import resolve
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
            table["vocabulary"] = resolve(table["vocabulary"], None, store)[1]
        name = settings.served_name or settings.model.rstrip("/").rsplit("/", 1)[-1]
        options = VllmSettings.of(settings.model, table)
        return VllmTarget(name, options, settings.limits, metrics)
    name, path = resolve(settings.model, settings.served_name, store)
    return LlamaTarget(name, path, settings.llama, settings.limits, metrics)
