#!/bin/sh
# Verifies moerl on this machine's GPU: every agreement suite on cuda, the golden vectors, a policy update, and the agreement suites
# under the four tools of compute-sanitizer. Needs an NVIDIA driver and nothing else.
#
#   ./run.sh            everything
#   ./run.sh quick      without compute-sanitizer
#
# Writes what each step printed to logs/, and one line a step here; exit status 1 if any failed.
cd "$(dirname "$0")" || exit 1
mkdir -p logs
export MOERL_REQUIRE_GPU=1 MOERL_DATA="$PWD/tests/data" RUST_BACKTRACE=0
failed=0

step() {
    name=$1
    shift
    begin=$(date +%s)
    if "$@" >"logs/$name.log" 2>&1; then verdict=ok; else verdict="FAILED ($?)"; failed=1; fi
    printf '%-44s %4ss  %s\n' "$name" "$(($(date +%s) - begin))" "$verdict"
    [ "$verdict" = ok ] || tail -n 15 "logs/$name.log"
}

./moerl devices || failed=1
step step ./moerl step tests/data/step.safetensors --backend cuda
suites=
for suite in tests/*; do
    [ -f "$suite" ] || continue
    if ! "$suite" cuda --list >"logs/list-$(basename "$suite").log" 2>&1; then
        echo "$suite does not start: see logs/list-$(basename "$suite").log"
        failed=1
    elif grep -q ': test$' "logs/list-$(basename "$suite").log"; then
        suites="$suites $suite"
    fi
done
[ -n "$suites" ] || failed=1
for suite in $suites; do
    step "$(basename "$suite")" "$suite" cuda
done
if [ "${1-}" != quick ]; then
    sanitizer=$PWD/compute-sanitizer/compute-sanitizer
    for tool in memcheck racecheck initcheck synccheck; do
        for suite in $suites; do
            # One thread: the tools slow the device down, and reports stay apart.
            step "$tool-$(basename "$suite")" \
                "$sanitizer" --tool "$tool" --error-exitcode 9 --print-limit 20 "$suite" cuda --test-threads=1
        done
    done
fi
if [ "$failed" = 0 ]; then echo "everything passed"; else echo "something FAILED: see logs/"; fi
exit "$failed"
