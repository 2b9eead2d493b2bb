#!/bin/sh
# Run a command and say how long it took: step.sh NAME COMMAND [ARGUMENT...]
set -eu
name=$1
shift
begun=$(date +%s)
printf '==> %s\n' "$name" >&2
if "$@"; then
    printf '==> %s: %s s\n' "$name" "$(($(date +%s) - begun))" >&2
else
    status=$?
    printf '==> %s: failed after %s s\n' "$name" "$(($(date +%s) - begun))" >&2
    exit "$status"
fi
