#!/bin/sh
# Build llama-cpp-python as a wheel: build-llama.sh PYTHON DIRECTORY
# DIRECTORY appears only when the wheel in it is whole. CMAKE_ARGS is added to what the build needs.
set -eu
python=$1
directory=$2
here=$(cd "$(dirname "$0")" && pwd)
requirement=$(sed -n 's/^ *"\(llama-cpp-python==[^"]*\)",$/\1/p' "$here/../pyproject.toml")

mkdir -p "$(dirname "$directory")"
unfinished=$(mktemp -d "$directory.XXXXXX")
trap 'rm -rf "$unfinished"' EXIT
quick="-DLLAVA_BUILD=OFF -DCMAKE_PROJECT_llama.cpp_INCLUDE=$here/llama-quick.cmake"
CMAKE_ARGS="$quick ${CMAKE_ARGS:-}" "$python" -m pip wheel --quiet --no-cache-dir --no-deps \
    --no-binary llama-cpp-python --wheel-dir "$unfinished" "$requirement"
chmod 755 "$unfinished"
mv "$unfinished" "$directory"
