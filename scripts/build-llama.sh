#!/bin/sh
# Build llama-cpp-python for this processor, once: build-llama.sh PYTHON DIRECTORY
# The wheel is left in DIRECTORY. CMAKE_ARGS is added to what the build needs.
set -eu
python=$1
directory=$2
here=$(cd "$(dirname "$0")" && pwd)
requirement=$(sed -n 's/^ *"\(llama-cpp-python==[^"]*\)",$/\1/p' "$here/../pyproject.toml")

set -- "$directory"/llama_cpp_python-*.whl
if [ -e "$1" ]; then
    exit 0
fi
mkdir -p "$directory"
unfinished=$(mktemp -d "$directory/unfinished.XXXXXX")
trap 'rm -rf "$unfinished"' EXIT
quick="-DLLAVA_BUILD=OFF -DCMAKE_PROJECT_llama.cpp_INCLUDE=$here/llama-quick.cmake"
CMAKE_ARGS="$quick ${CMAKE_ARGS:-}" "$python" -m pip wheel --quiet --no-cache-dir --no-deps \
    --no-binary llama-cpp-python --wheel-dir "$unfinished" "$requirement"
mv "$unfinished"/*.whl "$directory"
