"""Hypothesis measures no time here: a busy host is not a fault of the gateway."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("gateway", deadline=None)
settings.load_profile("gateway")
