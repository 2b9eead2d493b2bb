from __future__ import annotations

import socket

import pytest

from tests.images.docker import STATE


@pytest.fixture(autouse=True)
def _images_are_built_and_their_ports_free(request: pytest.FixtureRequest) -> None:
    if "images" not in request.keywords:
        return
    if not (STATE / "storage").is_dir():
        pytest.skip("no image is built: make test-image")
    for port in (8000, 9000):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                pytest.fail(f"port {port} is taken, which the commands as written use")
