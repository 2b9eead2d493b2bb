"""Brings a model here that a service is about to open, if it is missing."""

from __future__ import annotations

from picospec.models.catalogue import Role
from picospec.models.errors import NotPulled
from picospec.models.fetching.sources import Progress
from picospec.models.store import Found, Store


def obtain(store: Store, reference: str, role: Role, progress: Progress) -> Found:
    """Return the file of a reference, which is fetched or made if it is not here.

    Raises UnknownModel, CannotOpen, CannotQuantise or PullError.
    """
    try:
        return store.find(reference, role)
    except NotPulled:
        store.pull(reference, progress, role)
        return store.find(reference, role)
