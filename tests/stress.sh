#!/usr/bin/env bash
# The suite three times, each time in another order, while other work keeps every core busy; tells what failed.
# Usage: stress.sh PYTEST [ARGUMENTS]
set -u
pytest=$1; shift
logs=$(mktemp -d)
busy=()
for _ in $(seq "$(getconf _NPROCESSORS_ONLN)"); do
    (while :; do :; done) &
    busy+=($!)
done
trap 'kill "${busy[@]}"' EXIT
failed=0
for seed in ${SEEDS:-$RANDOM $RANDOM $RANDOM}; do
    "$pytest" -n 2 --dist worksteal --random-order-bucket=module --random-order-seed="$seed" "$@" \
        | tee "$logs/$seed"
    ((PIPESTATUS[0] == 0)) || failed=1
done
echo "Runs in random order (repeat one with: SEEDS=NUMBER make stress):"
for log in "$logs"/*; do
    echo "$(basename "$log"): $(tail -n 1 "$log")"
    grep -E "^(FAILED|ERROR)" "$log"
done
exit $failed
