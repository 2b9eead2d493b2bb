#!/bin/sh
# Make build/tools: what `make lock` and `make sbom` need and nothing else does.
set -eu
cd "$(dirname "$0")/.."
[ -x build/tools/bin/python ] || .venv/bin/python -m venv build/tools
build/tools/bin/python -m pip install --quiet --require-hashes --requirement requirements/tools.lock
touch build/tools/.ready
