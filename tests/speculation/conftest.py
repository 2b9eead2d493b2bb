"""Hypothesis measures no time here: a busy host is not a fault of the core."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("core", deadline=None)
settings.load_profile("core")
