"""Fetches the models that `picospec up` runs, and returns the arguments of the two services.

* llama.cpp runs a GGUF file, and vLLM a directory or repository of safetensors. On processors
  the file's weights are made exact; devices take the file as it is, whose size was chosen.
* Without a named draft model, one that fits the target is used (local_models.choosing), if any.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from rich.console import Console

from edge_agent.draft.loading import AUTO, NONE, pull_if_missing
from edge_agent.settings import load
from gateway.hosting.cores import Pins, compute_threads
from gateway.hosting.processes import ServiceError
from local_models.choosing import HubPolicy, choose_draft, vocabulary_of
from local_models.errors import NotPulled
from local_models.llama_cpp.library import check_llama, has_llama
from local_models.progress import progress_bar
from local_models.references import parse_reference
from local_models.store import Store
from verifier.llama_target.placing import Plan
from verifier.settings import VerifierSettings

Settings = Mapping[str, Mapping[str, object]]
"""Settings of "edge" and "verifier", each as in that service's own file."""

DEFAULT_PAIR: Final = "qwen2.5-coder"
NO_VLLM: Final = """{target} has safetensors, which vLLM runs, and vLLM is not installed here.
Install both from PicoSpec's folder, in an environment of their own, and run picospec there:
    pip install '.[cloud,llama]'          without a GPU: '.[cloud-cpu,llama]'
Or name a GGUF file, which llama.cpp runs."""


@dataclass(frozen=True, slots=True)
class ModelChoice:
    """The models to run, as references; see local_models.references."""

    target: str = DEFAULT_PAIR
    draft: str = AUTO
    engine: str = ""
    """The engine that runs the target, "llama" or "vllm"; empty: the one that it needs."""

    draft_from_hub: str = "ask"
    draft_max_gb: str = "1"

    @property
    def hub(self) -> HubPolicy:
        """Return the two settings before, as of the edge. Raises ServiceError."""
        try:
            known = {"draft_from_hub": self.draft_from_hub, "draft_max_gb": self.draft_max_gb}
            edge = load(None, {}, known)
        except ValueError as error:
            raise ServiceError(f"[edge]: {error}") from error
        return HubPolicy(edge.draft_from_hub, edge.draft_max_gb)

    @classmethod
    def of(cls, settings: Settings, environ: Mapping[str, str], **options: str | None) -> Self:
        """Read the fields from the options, else from the environment or the settings."""
        places = {
            "target": ("verifier", "model"),
            "draft": ("edge", "draft_model"),
            "engine": ("verifier", "target"),
            "draft_from_hub": ("edge", "draft_from_hub"),
            "draft_max_gb": ("edge", "draft_max_gb"),
        }
        choices = {}
        for field, (service, name) in places.items():
            variable = environ.get(f"PICOSPEC_{service.upper()}__{name.upper()}")
            if value := options.get(field) or variable or settings.get(service, {}).get(name):
                choices[field] = str(value)
        return cls(**choices)


def prepare(
    choice: ModelChoice, store: Store, console: Console, *, on_device: bool = False
) -> dict[str, tuple[str, ...]]:
    """Pull missing models, and return each service's arguments for its command line.

    on_device: a device computes the target, if llama.cpp runs it.

    Raises ServiceError, local_models.errors.ModelError.
    """
    draft, engine = choice.draft, choice.engine
    if engine == "vllm" or (not engine and _is_directory(choice.target, store)):
        verifier = ("--target", "vllm", "--model", _directory(choice.target, store))
    else:
        check_llama()
        verifier = ("--target", "llama", "--model", choice.target)
        with progress_bar(console, choice.target) as show:
            store.pull(choice.target, show, None if on_device else "target")
        draft = _fitting(choice, store, console) if draft == AUTO else draft
    if draft not in (AUTO, NONE):
        pull_if_missing(draft, store)
    return {"verifier": verifier, "edge": ("--draft", draft)}


def computes_on_device(settings: Settings, environ: Mapping[str, str]) -> bool:
    """Return True if llama.cpp computes the target on a device here. Raises WrongSettings, and
    CannotOpen for options that the devices cannot follow."""
    verifier = VerifierSettings.load(None, environ, settings.get("verifier", {}))
    return verifier.target == "llama" and has_llama() and bool(Plan.of(verifier.llama).devices)


def with_threads(settings: Settings, pins: Pins) -> Settings:
    """Give each end half of the threads, unless pins divide the cores between them."""
    if pins.edge or pins.verifier or (threads := compute_threads()) < 2:
        return settings
    verifier, edge = settings.get("verifier", {}), settings.get("edge", {})
    llama = verifier.get("llama", {})
    own = llama if isinstance(llama, Mapping) else {}
    return {
        "verifier": {**verifier, "llama": {"threads": threads - threads // 2, **own}},
        "edge": {"threads": threads // 2, **edge},
    }


def _is_directory(target: str, store: Store) -> bool:
    """Return True if a reference means safetensors. Raises SourceFailed."""
    if Path(target).expanduser().is_dir():
        return True
    hub = parse_reference(target)
    if hub is None or hub.file or hub.quantisation:
        return False
    try:
        store.find(target, "target")
    except NotPulled:
        return not store.hub.files(hub.repository)
    return False


def _directory(target: str, store: Store) -> str:
    """Return the model that vLLM is given; a repository is fetched."""
    if importlib.util.find_spec("vllm") is None:
        raise ServiceError(NO_VLLM.format(target=target))
    path, hub = Path(target).expanduser(), parse_reference(target)
    if path.is_dir() or hub is None:
        return str(path)
    store.hub.directory(hub.repository)
    return hub.repository


def _fitting(choice: ModelChoice, store: Store, console: Console) -> str:
    """Return the draft model for a target on llama.cpp, and print which it is and why."""
    target = choice.target
    if target in store.catalogue.pairs:
        return target
    target_model = store.find(target, "target")
    vocabulary, size = vocabulary_of(target_model.path), target_model.path.stat().st_size
    chosen = choose_draft(store, target_model.name, vocabulary, choice.hub, size)
    more = f" ({chosen.remedy})" if chosen.remedy else ""
    line = f"Draft model: {chosen.name or NONE}, because {chosen.why}{more}"
    console.print(line, soft_wrap=True, highlight=False, markup=False)
    return chosen.name or NONE
