#!/bin/sh
# Make build/NAME, the environment of requirements/NAME.lock: setup-tools.sh tools|docs|release
# It is for what `make lock`, `sbom`, `docs`, `wheel` and `release` need and nothing else does.
set -eu
cd "$(dirname "$0")/.."
python=.venv/bin/python
[ -x "$python" ] || python=${PYTHON:-python3}
[ -x "build/$1/bin/python" ] || "$python" -m venv "build/$1"
"build/$1/bin/python" -m pip install --quiet --require-hashes --requirement "requirements/$1.lock"
touch "build/$1/.ready"
