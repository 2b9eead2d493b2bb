#!/bin/sh
# Renew the lock files: lock.sh [OPTION OF uv...], such as --upgrade or --upgrade-package NAME
# Without an option, what a lock file has stays, as far as pyproject.toml still admits it.
#   build.lock   pip, and what llama.cpp and this package are built with
#   docs.lock    what the site of the documents is built with
#   dev.lock     what this package runs on, what its extras add, and what tests and checks need
#   release.lock twine, which checks what is published
#   run.lock     what this package and its extra llama run on, in the versions of dev.lock
#   tools.lock   uv, which writes these files, and cyclonedx-py, which writes the SBOM
# They hold for every platform and Python from 3.11 on, and name no index.
set -eu
cd "$(dirname "$0")/.."
unset PIP_FIND_LINKS UV_FIND_LINKS UV_INDEX_URL UV_EXTRA_INDEX_URL

compile() {
    name=$1
    shift
    build/tools/bin/uv pip compile --quiet --universal --generate-hashes --no-annotate \
        --no-emit-index-url --python-version 3.11 --custom-compile-command "make lock" \
        --output-file "requirements/$name.lock" "$@"
}

compile build --group build "$@"
compile docs --group docs "$@"
compile release --group release "$@"
compile tools --group tools "$@"
compile dev pyproject.toml --group dev --extra llama --extra otel "$@"
compile run pyproject.toml --extra llama --constraints requirements/dev.lock "$@"
