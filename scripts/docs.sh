#!/bin/sh
# Build the site of the documents into build/site. A link that leads nowhere is an error.
# The files keep their places, so that their links are right here and there.
set -eu
cd "$(dirname "$0")/.."
rm -rf build/site build/site-source
mkdir -p build/site-source
tar cf - ./*.md LICENSE ./Dockerfile.* compose.yaml configs deploy docs local_models/catalogue.toml verifier/vllm_target/patches.py |
    tar xf - -C build/site-source
NO_MKDOCS_2_WARNING=1 build/docs/bin/mkdocs build --strict
