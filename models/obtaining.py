"""Obtains the model that a service opens, and finds a draft model that fits a target."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from picospec.models.catalogue import Role
from picospec.models.errors import ModelError, NotPulled
from picospec.models.fetching.sources import Progress
from picospec.models.llama_cpp.model import Model
from picospec.models.store import Found, Store
from picospec.models.vocabulary import Vocabulary, relate

MIN_RATIO: Final = 2
"""A target's file must be at least this many times as large as its draft model's; with a larger
draft model, drafting takes so long that little is gained."""


def obtain(store: Store, reference: str, role: Role, progress: Progress) -> Found:
    """Return the file of a reference, after fetching or making it if it is missing.

    Raises UnknownModel, CannotOpen, CannotQuantise or PullError.
    """
    try:
        return store.find(reference, role)
    except NotPulled:
        store.pull(reference, progress, role)
        return store.find(reference, role)


def fitting_draft(
    store: Store, target: str, vocabulary: Vocabulary, target_bytes: int | None = None
) -> str | None:
    """Return the name of a draft model for a target; None if the catalogue has none.

    A draft model that is paired with the target has precedence, whatever its vocabulary. The
    next choice is the smallest one whose token ids mean the same; it may have to be pulled.
    target: its name. target_bytes: the size of its file; None if unknown.
    """
    for name in store.catalogue.drafts_of(target):
        return name
    for name in _candidates(store, target):
        small = target_bytes is None or _bytes(store, name) * MIN_RATIO <= target_bytes
        if small and _fits(store, name, vocabulary):
            return name
    return None


def _candidates(store: Store, target: str) -> Iterator[str]:
    """Yield the draft models of all pairs and all Q4_0 variants, smallest first."""
    catalogue = store.catalogue
    drafts = {pair.draft for pair in catalogue.pairs.values()}
    drafts |= {name for name, of in catalogue.variants.items() if of.quantisation == "Q4_0"}
    for name in sorted(drafts, key=lambda name: (_bytes(store, name), name)):
        if target not in (name, catalogue.recipe(name).model):
            yield name


def _fits(store: Store, name: str, vocabulary: Vocabulary) -> bool:
    if known := store.catalogue.recipe(name).file.vocabulary:
        return known == vocabulary.digest
    try:
        model = Model(store.find(name, "draft").path, vocabulary_only=True)
    except ModelError:
        return False
    own = model.vocabulary
    model.close()
    return relate(vocabulary, own) != "different"


def _bytes(store: Store, name: str) -> int:
    return store.catalogue.recipe(name).file.bytes
