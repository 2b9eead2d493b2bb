#!/bin/sh
# Build llama-cpp-python as a wheel: build-llama.sh PYTHON DIRECTORY
# DIRECTORY appears only when the wheel in it is whole. CMAKE_ARGS is added to what the build needs.
# The sdist and what it is built with are checked by the hashes of the lock files.
set -eu
python=$1
directory=$2
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$(dirname "$directory")"
unfinished=$(mktemp -d "$directory.XXXXXX")
trap 'rm -rf "$unfinished"' EXIT
quick="-DLLAVA_BUILD=OFF -DCMAKE_PROJECT_llama.cpp_INCLUDE=$here/llama-quick.cmake"
"$here/locked.sh" run llama-cpp-python |
    CMAKE_ARGS="$quick ${CMAKE_ARGS:-}" "$python" -m pip wheel --quiet --no-cache-dir --no-deps \
        --no-binary llama-cpp-python --require-hashes --requirement /dev/stdin \
        --build-constraint "$here/../requirements/build.lock" --wheel-dir "$unfinished"
chmod 755 "$unfinished"
mv "$unfinished" "$directory"
