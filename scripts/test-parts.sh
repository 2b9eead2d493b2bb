#!/bin/sh
# Run tests in several processes at once: test-parts.sh PARTS PYTEST [ARGUMENT...]
set -u
parts=$1
shift
part=1 started=
while [ "$part" -le "$parts" ]; do
    "$@" --part "$part/$parts" &
    started="$started $!"
    part=$((part + 1))
done
status=0
for process in $started; do
    wait "$process" || status=$?
done
exit "$status"
