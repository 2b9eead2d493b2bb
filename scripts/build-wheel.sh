#!/bin/sh
# Build this package as a wheel: build-wheel.sh PYTHON DIRECTORY
set -eu
mkdir -p "$2"
directory=$(cd "$2" && pwd)
cd "$(dirname "$0")/.."
rm -rf build/lib # setuptools would add what an earlier build has left there
"$1" -m pip wheel --quiet --no-cache-dir --no-deps \
    --build-constraint requirements/build.lock --wheel-dir "$directory" .
rm -rf build/lib build/bdist.*
