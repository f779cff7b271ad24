#!/bin/sh
# moerl on this machine's GPU. Needs an NVIDIA driver; the peers also need Python with PyTorch, and whatever else of them is installed is timed.
#
#   ./run.sh verify     every agreement suite on cuda, the golden vectors, a policy update
#   ./run.sh sanitize   the agreement suites under the four tools of compute-sanitizer
#   ./run.sh bench      every kernel against what memory gives; the peers beside it; whether they agree
#   ./run.sh all        the three of them, in this order (also without an argument)
#
# Every step ends after LIMIT seconds (default 300; bench and the peers, hundreds of cases each: twice that). What each printed goes to results/,
# one line a step here; exit status 1 if any failed.
cd "$(dirname "$0")" || exit 1
mkdir -p results
export MOERL_REQUIRE_GPU=1 MOERL_DATA="$PWD/tests/data" RUST_BACKTRACE=0
what=${1-all}
limit=${LIMIT-300}
failed=0

case $what in
verify | sanitize | bench | all) ;;
*)
    echo "what is $what? One of verify, sanitize, bench, all" >&2
    exit 2
    ;;
esac

step() {
    name=$1
    shift
    begin=$(date +%s)
    if timeout "$limit" "$@" >"results/$name.txt" 2>&1; then verdict=ok; else verdict="FAILED ($?)"; failed=1; fi
    printf '%-44s %4ss  %s\n' "$name" "$(($(date +%s) - begin))" "$verdict"
    [ "$verdict" = ok ] || tail -n 15 "results/$name.txt"
}

wanted() { [ "$what" = all ] || [ "$what" = "$1" ]; }

./moerl devices | tee results/devices.txt
if ! ./moerl devices | grep -q '^auto *cuda'; then
    echo "no GPU that moerl can use: nothing was run"
    exit 1
fi

suites=
if wanted verify || wanted sanitize; then
    for suite in tests/*; do
        [ -f "$suite" ] || continue
        list=results/list-$(basename "$suite").txt
        if ! "$suite" cuda --list >"$list" 2>&1; then
            echo "$suite does not start: see $list"
            failed=1
        elif grep -q ': test$' "$list"; then
            suites="$suites $suite"
        fi
    done
    [ -n "$suites" ] || failed=1
fi

if wanted verify; then
    step step ./moerl step tests/data/step.safetensors --backend cuda
    for suite in $suites; do
        step "$(basename "$suite")" "$suite" cuda
    done
fi

if wanted sanitize; then
    sanitizer=$PWD/compute-sanitizer/compute-sanitizer
    for tool in memcheck racecheck initcheck synccheck; do
        for suite in $suites; do
            # One thread: the tools slow the device down, and reports stay apart.
            step "$tool-$(basename "$suite")" \
                "$sanitizer" --tool "$tool" --error-exitcode 9 --print-limit 20 "$suite" cuda --test-threads=1
        done
    done
fi

if wanted bench; then
    limit=$((2 * limit))
    step bench ./moerl bench --backend cuda --json results/ours.json
    tail -n +2 results/bench.txt
    if python3 -c 'import torch, safetensors' 2>results/python.txt; then
        step calls ./moerl bench --backend cuda --export results/calls.safetensors
        step agreement python3 peers/peers.py --agree results/calls.safetensors
        cat results/agreement.txt
        step step-out ./moerl step tests/data/step.safetensors --backend cuda --out results/ours.safetensors
        step agreement-step python3 peers/peers.py --agree tests/data/step.safetensors results/ours.safetensors
        cat results/agreement-step.txt
        # What is compiled comes last, and may not all be reached; a case that has begun ends before the step does.
        step peers python3 peers/peers.py --limit $((limit * 4 / 5)) --json results/peers.json --ours results/ours.json
        cat results/peers.txt
    else
        echo "peers: not timed, Python has no torch or no safetensors (results/python.txt)"
    fi
fi

if [ "$failed" = 0 ]; then echo "everything passed"; else echo "something FAILED: see results/"; fi
exit "$failed"
