"""Which model a service opens: brings it here if it is missing, and finds a draft that fits."""

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
"""How many times as large as its draft model a target must be: below, drafting takes so long
that little can be gained."""


def obtain(store: Store, reference: str, role: Role, progress: Progress) -> Found:
    """Return the file of a reference, which is fetched or made if it is not here.

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

    A draft that is paired with the target comes first, whatever its vocabulary; then the
    smallest one whose token ids mean the same, which may have to be pulled. target: its name.
    target_bytes: the size of its file; None if unknown.
    """
    for name in store.catalogue.drafts_of(target):
        return name
    for name in _candidates(store, target):
        small = target_bytes is None or _bytes(store, name) * MIN_RATIO <= target_bytes
        if small and _fits(store, name, vocabulary):
            return name
    return None


def _candidates(store: Store, target: str) -> Iterator[str]:
    """Yield the drafts of all pairs and what is quantised for drafting, the smallest first."""
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
