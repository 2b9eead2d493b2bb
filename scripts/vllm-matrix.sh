#!/bin/sh
# The greedy identity tests on several versions of vLLM: vllm-matrix.sh VERSION...
# Other versions than the installed one are put before it on the path: see vllm-path.sh.
set -eu
cd "$(dirname "$0")/.."
test=tests/verifier/vllm_target/test_identity.py

for version in "$@" ""; do
    path=$(scripts/vllm-path.sh $version)
    PYTHONPATH="$path" scripts/step.sh "identity on vLLM ${path##*/}" \
        .venv-vllm/bin/python -m pytest -q "$test" -k "cached or (greedy and not drawn)"
done
