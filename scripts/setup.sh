#!/bin/sh
# Make .venv with everything PicoSpec runs on: setup.sh [run|dev]
# `dev` adds what tests and checks need. torch and vLLM are never installed here.
set -eu
extent=${1:-run}
here=$(cd "$(dirname "$0")" && pwd)
cd "$here/.."
step="$here/step.sh"

good_python() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

find_python() {
    for name in ${PYTHON:-} python3.11 python3 python3.12 python3.13; do
        if good_python "$name"; then
            echo "$name"
            return
        fi
    done
    echo "PicoSpec needs Python 3.11 or newer; name one with PYTHON=/path/to/python3" >&2
    return 1
}

# What must come from the system, by Debian's names; nothing when all is there.
missing_packages() {
    command -v gcc >/dev/null || echo gcc
    command -v g++ >/dev/null || echo g++
    command -v make >/dev/null || command -v ninja >/dev/null || echo make
    "$1" -c 'import ensurepip, venv' 2>/dev/null || echo python3-venv
    # Tests of a proxy before several verifiers are skipped where there is none.
    if [ "$extent" = dev ] && [ "$(id -u)" -eq 0 ]; then
        command -v haproxy >/dev/null || echo haproxy
    fi
}

python=$(find_python)
packages=$(missing_packages "$python")
if [ -n "$packages" ]; then
    # shellcheck disable=SC2086 # one word, one package
    "$step" "build tools installed" "$here/install-packages.sh" $packages
fi

# The tests of the page drive a real browser, and are skipped where there is none.
if [ "$extent" = dev ] && ! command -v chromium >/dev/null && ! command -v chromium-browser >/dev/null; then
    "$step" "Chromium installed" "$here/install-packages.sh" chromium ||
        echo "there is no Chromium: the tests of the page will be skipped" >&2
fi

if ! good_python .venv/bin/python; then
    "$step" "virtual environment made" "$python" -m venv --clear .venv
fi
"$step" "pip installed" "$here/install-locked-pip.sh" .venv/bin/python

wheels=$("$here/llama-wheels.sh")
if ! [ -d "$wheels" ]; then
    "$step" "llama.cpp built (once a machine; minutes)" \
        "$here/build-llama.sh" "$PWD/.venv/bin/python" "$wheels"
fi

# All else comes by the hashes of the lock file; the wheel built here stands for its sdist there.
install() {
    .venv/bin/python -m pip install --quiet --no-deps "$wheels"/llama_cpp_python-*.whl
    .venv/bin/python -m pip install --quiet --require-hashes --requirement "requirements/$extent.lock"
    # An editable install warns of folders named like packages; here they are the packages.
    PYTHONWARNINGS=ignore .venv/bin/python -m pip install --quiet --no-deps \
        --build-constraint requirements/build.lock --editable .
}

echo "==> packages installed" >&2
begun=$(date +%s)
install
echo "==> packages installed: $(($(date +%s) - begun)) s" >&2
touch .venv/.ready-run ".venv/.ready-$extent"
