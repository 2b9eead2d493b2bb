"""Runs an edge where the name `verifiers` has the addresses that are in the file ADDRESSES."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from edge_agent.__main__ import app

_lookup = socket.getaddrinfo


def lookup(host: str, *arguments: int, **more: int) -> list[object]:
    if host != "verifiers":
        return [*_lookup(host, *arguments, **more)]
    addresses = Path(os.environ["ADDRESSES"]).read_text().split()
    return [found for each in addresses for found in _lookup(each, *arguments, **more)]


if __name__ == "__main__":
    socket.getaddrinfo = lookup  # type: ignore[assignment]
    app(prog_name="picospec edge")
