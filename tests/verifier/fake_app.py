"""The verifier's app on the fake target in this process, and clients with keys of their own."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
from fastapi import FastAPI

from speculation import wire
from tests.verifier.fake_target import FakeTarget, opening
from verifier.app import build
from verifier.settings import load

ANN, BEN = "key of ann", "key of ben"
OPEN = wire.encode(opening())


def keys_toml(*names: str, more: str = "") -> str:
    digests = {name: hashlib.sha256(f"key of {name}".encode()).hexdigest() for name in names}
    return "".join(f'[{name}]\nsha256 = "{digests[name]}"\n{more}\n' for name in names)


def write_keys(folder: Path, *names: str, more: str = "") -> Path:
    file = folder / "keys.toml"
    file.write_text(keys_toml(*names, more=more))
    return file


@asynccontextmanager
async def app_of(keys_file: Path, target: FakeTarget) -> AsyncIterator[FastAPI]:
    """The verifier's app, with its target started."""
    app = build(load(None, {}, {"keys_file": keys_file}), lambda _: target)
    async with app.router.lifespan_context(app):
        await asyncio.sleep(0)
        yield app


def client_of(app: FastAPI, key: str) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app=app)
    headers = {"authorization": f"Bearer {key}"}
    return httpx.AsyncClient(transport=transport, base_url="http://v", headers=headers)
