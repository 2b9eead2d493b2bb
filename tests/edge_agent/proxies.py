"""The shipped proxy configurations, with this machine's addresses in place of those in them."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest
import trustme

from picospec.bench.run.services import free_port
from tests.edge_agent.processes import ROOT, wait_for

NGINX: Final = """daemon off; worker_processes 1; pid nginx.pid; error_log stderr;
events {{ worker_connections 1024; }}
http {{ access_log off; {paths} include {file}; }}
"""
TEMPORARY: Final = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")


@contextmanager
def proxying(
    name: str, ports: tuple[int, int], folder: Path, change: Callable[[str], str] = str
) -> Iterator[tuple[str, bytes]]:
    """Run a proxy before two verifiers; yield its URL, and the authority of its certificate.

    change: what is to be different from the shipped configuration.
    """
    authority, port = trustme.CA(), free_port()
    given = authority.issue_cert("localhost")
    given.private_key_and_cert_chain_pem.write_to_path(str(folder / "proxy.pem"))
    given.private_key_pem.write_to_path(str(folder / "key.pem"))
    given.private_key_and_cert_chain_pem.write_to_path(str(folder / "fullchain.pem"))
    file = {"haproxy": "haproxy.cfg", "nginx": "nginx.conf"}[name]
    shipped = (ROOT / "deploy/proxies" / file).read_text()
    places = {
        "10.0.0.5:9000": f"127.0.0.1:{ports[0]}",
        "10.0.0.6:9000": f"127.0.0.1:{ports[1]}",
        "/etc/picospec": str(folder),
        "bind :443": f"bind 127.0.0.1:{port}",
        "listen 443": f"listen 127.0.0.1:{port}",
    }
    for there, here in places.items():
        shipped = shipped.replace(there, here)
    (folder / file).write_text(change(shipped))
    running = subprocess.Popen(_command(name, folder, folder / file), cwd=folder)
    try:
        wait_for(port)
        yield f"https://localhost:{port}", authority.cert_pem.bytes()
    finally:
        running.terminate()  # nginx ends its workers
        running.wait()


def _command(name: str, folder: Path, file: Path) -> list[str]:
    if name == "haproxy":
        return ["haproxy", "-db", "-f", str(file)]
    paths = "".join(f"{each}_temp_path {folder}/{each}; " for each in TEMPORARY)
    main = folder / "main.conf"
    main.write_text(NGINX.format(paths=paths, file=file))
    return ["nginx", "-p", str(folder), "-c", str(main), "-e", "stderr"]


def is_here(name: str) -> bool:
    return shutil.which(name) is not None


PROXIES: Final = [
    pytest.param(name, marks=pytest.mark.skipif(not is_here(name), reason=f"no {name} here"))
    for name in ("haproxy", "nginx")
]
