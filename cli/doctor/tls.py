"""How the checks that do not go over the edge's own link show and check certificates."""

from __future__ import annotations

import ssl

from picospec.edge_agent.settings import EdgeSettings


def tls_context(settings: EdgeSettings) -> ssl.SSLContext:
    """Return the trust that an edge has in a verifier, and what it shows. Raises OSError."""
    context = ssl.create_default_context(cafile=settings.verifier_ca)
    if settings.client_certificate:
        context.load_cert_chain(settings.client_certificate, settings.client_key)
    return context
