"""These environment variables tell our plugin how `picospec` has launched vLLM."""

from __future__ import annotations

from typing import Final

CONFIG: Final = "PICOSPEC_VERIFIER_CONFIG"
"""This environment variable gives our plugin the path of the settings file."""

SOCKET: Final = "PICOSPEC_VLLM_SOCKET"
"""This environment variable names the folder of vLLM's socket, for a vLLM without a port of its
own."""

FOLDER_PREFIX: Final = "picospec-vllm-"
"""The folder's name begins with this."""
