"""Serves the fake target through the real server: `python serve_fake.py PORT SETTINGS-JSON`."""

from __future__ import annotations

import os
import sys
from functools import partial

import msgspec
from fastapi import FastAPI

from picospec.gateway.hosting.server import serve
from picospec.verifier.app import build
from picospec.verifier.metrics import VerifierMetrics
from picospec.verifier.settings import VerifierSettings, load
from tests.verifier.fake_target import FakeTarget


def make(slots: int, starts: bool, _: VerifierMetrics) -> FakeTarget:
    return FakeTarget(slots=slots, pass_s=0.001, starts=starts)


def app(settings: VerifierSettings) -> FastAPI:
    return build(settings, partial(make, settings.sessions.max_sessions, settings.model != ""))


if __name__ == "__main__":
    overrides = {"port": int(sys.argv[1]), **msgspec.json.decode(sys.argv[2])}
    settings = load(None, os.environ, overrides)
    serve(settings, partial(app, settings))
