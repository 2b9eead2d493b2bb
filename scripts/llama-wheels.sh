#!/bin/sh
# Print where setup.sh keeps the wheel of llama.cpp for this machine.
# A wheel built here may use every instruction of this processor, and what CMAKE_ARGS asks for
# (a GPU), so it is kept by both, and by its version.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
requirement=$(sed -n 's/^llama = \["\(llama-cpp-python==[^"]*\)"\]$/\1/p' "$here/../pyproject.toml")
processor=$({
    uname -m
    grep -m1 -E '^(flags|Features)' /proc/cpuinfo 2>/dev/null || true
    printf %s "${CMAKE_ARGS:-}"
} | cksum | cut -d' ' -f1)
echo "${PICOSPEC_CACHE:-$HOME/.cache/picospec}/wheels/$requirement-$processor"
