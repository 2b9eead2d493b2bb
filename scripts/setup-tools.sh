#!/bin/sh
# Make build/NAME, the environment of requirements/NAME.lock: setup-tools.sh tools|docs|release
# It is for what `make lock`, `sbom`, `docs` and `release` need and nothing else does.
set -eu
cd "$(dirname "$0")/.."
[ -x "build/$1/bin/python" ] || .venv/bin/python -m venv "build/$1"
"build/$1/bin/python" -m pip install --quiet --require-hashes --requirement "requirements/$1.lock"
touch "build/$1/.ready"
