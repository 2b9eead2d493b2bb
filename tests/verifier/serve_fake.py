"""Serves the fake target through the real server: `python serve_fake.py PORT SETTINGS-JSON`."""

from __future__ import annotations

import os
import sys
from functools import partial

import msgspec
from fastapi import FastAPI

from gateway.hosting.serving import serve
from tests.verifier.fake_target import FakeTarget
from verifier.app import build
from verifier.metrics import PassMetrics
from verifier.settings import VerifierSettings, load


def make(slots: int, starts: bool, _: PassMetrics) -> FakeTarget:
    return FakeTarget(slots=slots, pass_s=0.001, starts=starts)


def app(settings: VerifierSettings) -> FastAPI:
    return build(settings, partial(make, settings.sessions.max_sessions, settings.model != ""))


if __name__ == "__main__":
    overrides = {"port": int(sys.argv[1]), **msgspec.json.decode(sys.argv[2])}
    settings = load(None, os.environ, overrides)
    serve(settings, partial(app, settings))
