"""Times other libraries on the shapes of `moerl bench`, checks that they compute the same, and joins both into one table.

    moerl bench --json ours.json                 # on the GPU machine, a minute before or after
    python peers.py --json peers.json --ours ours.json

    moerl bench --export calls.safetensors       # inputs and results of small calls
    python peers.py --agree calls.safetensors
    python peers.py --agree step.safetensors ours.safetensors      # what `moerl step step.safetensors --out ours.safetensors` wrote

On a machine without a GPU the shapes are small and the times are the CPU's: it shows that the program works, and nothing else.
A peer that is not installed, or that refuses a shape, is a row that says so; without torch, all of them are. `--agree` needs torch and safetensors.
"""

import argparse
import collections
import json
import pathlib
import statistics
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).parent))

import advantage
import agreement
import common
import correction
import ema
import gate
import logprob
import objective
from common import DEVICE, Missing, torch

NOUNS = {"gate": gate, "logprob": logprob, "objective": objective, "correction": correction, "advantage": advantage, "ema": ema}

NO_MEASUREMENT = "times of a CPU, one call each: they show that the program works, and nothing else"
FLUSHED_BYTES = 256 << 20
COLD_RUNS = 15
# Fewer where a call is long: a loop over the tokens takes a good part of a second.
COLD_SECONDS = 2.0
SAVED_SECONDS = 10.0
# Cycles that the device waits before every call, about two milliseconds: what the host does to queue it is then no part of its time.
QUEUED_CYCLES = 4_000_000


class Clock:
    """Times a call as `moerl bench` does: the median of runs that find the caches full of something else."""

    def __init__(self):
        if DEVICE == "cuda":
            self.flush = torch.zeros(FLUSHED_BYTES // 4, dtype=torch.int32, device=DEVICE)

    def microseconds(self, call):
        # Whatever is compiled or tuned at the first calls is not timed.
        for _ in range(3 if DEVICE == "cuda" else 1):
            call()
        if DEVICE != "cuda":
            start = time.perf_counter()
            call()
            return (time.perf_counter() - start) * 1e6
        times, begin = [], time.perf_counter()
        while len(times) < COLD_RUNS and (not times or time.perf_counter() - begin < COLD_SECONDS):
            self.flush.max()  # reads: what was written would have to be put back at the peer's expense
            torch.cuda._sleep(QUEUED_CYCLES)
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            call()
            end.record()
            end.synchronize()
            times.append(start.elapsed_time(end) * 1e3)
        return statistics.median(times)


def heading(peer, case):
    return {"peer": peer.name, "noun": case.noun, "operation": case.operation, "shape": case.shape, "element": case.element}


def measure(peer, case, clock, rule):
    """One row: what a peer took for a case, or why it did not."""
    row = heading(peer, case)
    if torch is None:
        return row | {"missing": common.NO_TORCH}
    try:
        call, _ = common.ready(peer, case, lambda: NOUNS[case.noun].inputs(case), rule)
        return row | {"us": clock.microseconds(call)}
    except Missing as reason:
        return row | {"missing": str(reason)}
    except Exception as error:  # a peer's own failure must not hide the others' figures
        return row | {"failed": f"{type(error).__name__}: {error}".splitlines()[0][:200]}


def jobs(options):
    """Peers and cases in the order of the table."""
    full = (options.shapes or ("full" if DEVICE == "cuda" else "small")) == "full"
    for noun in NOUNS.values():
        for case in noun.cases(full):
            for peer in noun.PEERS:
                if case.operation in peer.operations and any(text in f"{case} {peer.name}" for text in options.only):
                    yield peer, case


def measure_all(options, save):
    """All rows; saved now and then, for whoever ends this before its time. What must be compiled comes last, for it takes seconds a case: one of
    every operation, then another of each."""
    todo = list(jobs(options))
    turns, saved = collections.Counter(), time.perf_counter()

    def order(index):
        peer, case = todo[index]
        operation = (peer.name, case.noun, case.operation)
        turns[operation] += 1
        return peer.is_compiled, turns[operation] if peer.is_compiled else 0

    rows, begin = [heading(*job) | {"missing": "not reached"} for job in todo], time.perf_counter()
    clock = Clock() if torch else None
    rule = common.Rule(takes_all=(options.compile or ("all" if DEVICE == "cuda" else "first")) == "all")
    for index in sorted(range(len(todo)), key=order):
        if options.limit is not None and time.perf_counter() - begin > options.limit:
            break
        peer, case = todo[index]
        rows[index] = measure(peer, case, clock, rule)
        if DEVICE == "cuda":
            torch.cuda.empty_cache()
        if time.perf_counter() - saved > SAVED_SECONDS:
            save(rows)
            saved = time.perf_counter()
        print(f"{case}: {peer.name}", file=sys.stderr)
    save(rows)
    return rows


def key(row):
    return row["noun"], row["operation"], row["shape"], row["element"]


def table(rows, ours):
    """Lines of text: our time, the peer's, and how many of ours fit into one of its."""
    mine = {key(case): case.get("cold_us") for case in ours}
    lines = [("case", "type", "peer", "ours µs", "peer µs", "peer / ours")]
    for row in rows:
        own = mine.get(key(row))
        said = row.get("missing") or row.get("failed")
        lines.append((
            f"{row['noun']} {row['operation']}, {row['shape']}",
            row["element"],
            row["peer"],
            "–" if own is None else f"{own:.1f}",
            said if said else f"{row['us']:.1f}",
            "" if said or own is None else f"{row['us'] / own:.2f}",
        ))
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines)


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--json", type=pathlib.Path, help="write the figures to this file")
    arguments.add_argument("--ours", type=pathlib.Path, help="what `moerl bench --json` wrote, to be joined")
    arguments.add_argument("--only", nargs="*", default=[""], help="only cases and peers with one of these texts in their row")
    arguments.add_argument("--shapes", choices=("full", "small"), help="those of training or a few rows of them; else by whether there is a GPU")
    arguments.add_argument(
        "--compile", choices=("all", "first"),
        help="compile every case, as it is timed on a GPU, or the first of every operation, as elsewhere and to compare: it takes seconds each",
    )
    arguments.add_argument("--limit", type=float, metavar="SECONDS", help="begin nothing new after this time")
    arguments.add_argument("--agree", nargs="+", type=pathlib.Path, metavar="FILE", help="compare results instead of timing")
    options = arguments.parse_args()
    if options.agree:
        compare(options.agree, common.Rule(takes_all=options.compile == "all"))
    ran_on = torch.cuda.get_device_name() if DEVICE == "cuda" else "cpu"
    version = torch.__version__ if torch else None
    note = NO_MEASUREMENT if torch and DEVICE == "cpu" else None
    document = {"ran_on": ran_on, "torch": version} | ({"note": note} if note else {})

    def save(rows):
        if options.json:
            options.json.write_text(json.dumps(document | {"rows": rows}, indent=2) + "\n")

    rows = measure_all(options, save)
    ours = json.loads(options.ours.read_text())["cases"] if options.ours else []
    print(f"peers on {ran_on}, torch {version or 'not installed'}" + (f": {note}" if note else ""))
    print(table(rows, ours))


def compare(files, rule):
    if torch is None:
        sys.exit(f"nothing compared: {common.NO_TORCH}")
    if len(files) > 2:
        sys.exit("--agree takes what `moerl bench --export` wrote, or a step file and what `moerl step --out` wrote for it")
    text, agreed = agreement.compare_calls(*files, NOUNS, rule) if len(files) == 1 else agreement.compare_step(*files)
    print(text)
    sys.exit(0 if agreed else 1)


if __name__ == "__main__":
    main()
