"""Says how vLLM's server starts on the stand-in for a GPU, with our plugin or without."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from bench.run.services import FORGETFUL, free_port
from gateway.hosting.processes import Service
from picospec.link import HOST

MODEL: Final = "tiny"
_STAND_IN: Final = "bench.pace.standin.StandIn"
_QUIET: Final = {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}
_PLAIN: Final = ("bench.run.stock_vllm", "--speculation", "{}")
_PLUGGED: Final = ("verifier", "--target", "vllm")


@dataclass(frozen=True, slots=True)
class Vllm:
    """A Vllm is one server that can be started."""

    python: str
    model: Path
    clients: int
    """This many requests run at once."""

    plugin: bool
    options: Mapping[str, str]
    """vLLM has these options, by name."""

    environment: Mapping[str, str] = field(default_factory=dict)
    plain_port: int = field(default_factory=free_port)
    own_port: int = field(default_factory=free_port)

    @property
    def plain_url(self) -> str:
        """Return the address of vLLM's own API."""
        return f"http://{HOST}:{self.plain_port}"

    @property
    def sessions_url(self) -> str:
        return f"http://{HOST}:{self.own_port}"

    @property
    def service(self) -> Service:
        options = {
            "served-model-name": MODEL,
            "port": str(self.plain_port),
            "max-num-seqs": str(self.clients),
            **self.options,
        }
        arguments = [
            text for name, value in options.items() for text in (f"--vllm.{name}", value)
        ]
        environment = {**_QUIET, **FORGETFUL, **self.environment}
        where = ("--model", str(self.model), "--host", HOST, "--port")
        if not self.plugin:
            command = (self.python, "-m", *_PLAIN, *where, str(self.plain_port), *arguments)
            return Service("vLLM", command, self.plain_url, (), environment, "/health")
        arguments += ["--sessions.max-sessions", str(self.clients)]
        command = (self.python, "-m", *_PLUGGED, *where, str(self.own_port), *arguments)
        return Service("vLLM with the plugin", command, self.sessions_url, (), environment)


def on_stand_in(
    python: str,
    model: Path,
    clients: int,
    settings: Mapping[str, float],
    *,
    plugin: bool,
    synchronous: bool = False,
) -> Vllm:
    """Return a server on the stand-in for a GPU. settings: its own. synchronous: True for a
    vLLM without asynchronous scheduling."""
    options = {
        "dtype": "bfloat16", "max-model-len": "2048", "block-size": "16",
        "load-format": "dummy", "max-num-batched-tokens": "2048",
        "worker-cls": f"{_STAND_IN}Worker",
        "distributed-executor-backend": f"{_STAND_IN}Executor",
        "additional-config": json.dumps({"standin": settings}),
    }  # fmt: skip
    if synchronous:
        options["async-scheduling"] = "false"
    return Vllm(python, model, clients, plugin, options, {"VLLM_USE_V2_MODEL_RUNNER": "1"})
