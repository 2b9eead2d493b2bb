#!/bin/sh
# Give PYTHON the pip of the lock file, by its hash: install-locked-pip.sh PYTHON
set -eu
"$(dirname "$0")/locked.sh" build pip |
    "$1" -m pip install --quiet --require-hashes --requirement /dev/stdin
