"""Decides whose prefixes and whose earlier answers a request may use: those of its tenant, or
those of one of the tenant's own users, whom an edge tells apart by a salt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from speculation.answer_cache import SHARED, Owner
from speculation.messages import Open
from speculation.request_names import SALT
from verifier.identity import identity_of


@dataclass(frozen=True, slots=True)
class Owners:
    """share_prefixes: True if all tenants count as one. keeps_answers: True if requests may
    draft from earlier answers."""

    share_prefixes: bool = False
    keeps_answers: bool = True

    def of_prefixes(self, tenant: str | None, request: Open) -> str | None:
        """Return the owner of the prefixes that the KV cache keeps of a tenant's prompt."""
        if self.share_prefixes:
            return None
        salt = request.sampling.extras.get(SALT)
        return tenant if salt is None else identity_of(tenant, bytes(salt))

    def of_answers(self, tenant: str | None, request: Open) -> Owner | None:
        """Return the owner whose earlier answers a request may draft from, and to whose its own
        is added: the one of its prefixes. None if no answers are kept, as without a tenant."""
        if not self.keeps_answers or tenant is None:
            return None
        if self.share_prefixes:
            return SHARED
        return owner_of(tenant, request.sampling.extras.get(SALT))


SEPARATE: Final = Owners()


def owner_of(tenant: str, salt: bytes | None = None) -> Owner:
    """Return the owner of a tenant's answers. salt: of one of its users, in JSON."""
    return Owner(tenant, "" if salt is None else identity_of(bytes(salt)))
