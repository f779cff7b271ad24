"""Times other libraries on the shapes of `moerl bench`, checks that they compute the same, and joins both into one table.

    moerl bench --json ours.json                 # on the GPU machine, a minute before or after
    python peers.py --json peers.json --ours ours.json
    python peers.py --agree step.safetensors ours.safetensors      # what `moerl step step.safetensors --out ours.safetensors` wrote

On a machine without a GPU the shapes are small and the times are the CPU's: it shows that the program works, and nothing else.
A peer that is not installed, or that refuses a shape, is a row that says so; without torch, all of them are. `--agree` needs torch and safetensors.
"""

import argparse
import importlib
import json
import pathlib
import statistics
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).parent))

import advantage
import common
import correction
import ema
import gate
import logprob
import objective
from common import torch

FLUSHED_BYTES = 256 << 20
COLD_RUNS = 15


class Clock:
    """Times a call as `moerl bench` does: the median of runs that find the caches full of something else."""

    def __init__(self, device):
        self.device = device
        if device == "cuda":
            self.flush = torch.zeros(FLUSHED_BYTES // 4, dtype=torch.int32, device=device)

    def microseconds(self, call):
        call()
        if self.device != "cuda":
            start = time.perf_counter()
            call()
            return (time.perf_counter() - start) * 1e6
        for _ in range(3):
            call()
        times = []
        for _ in range(COLD_RUNS):
            self.flush.max()  # reads: what was written would have to be put back at the peer's expense
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            call()
            end.record()
            end.synchronize()
            times.append(start.elapsed_time(end) * 1e3)
        return statistics.median(times)


def measure(peer, case, clock):
    """One row: what a peer took for a case, or why it did not."""
    row = {"peer": peer.name, "noun": case.noun, "operation": case.operation, "shape": case.shape, "element": case.element}
    if torch is None:
        return row | {"missing": common.NO_TORCH}
    if peer.module is not None:
        try:
            importlib.import_module(peer.module)
        except Exception as error:  # a broken installation is as good as none
            return row | {"missing": f"{peer.module}: {type(error).__name__}: {error}".splitlines()[0]}
    try:
        call = peer.prepare(case, clock.device)
        row["us"] = clock.microseconds(call)
    except Exception as error:  # a peer's own failure must not hide the others' figures
        row["failed"] = f"{type(error).__name__}: {error}".splitlines()[0][:200]
    finally:
        if clock.device == "cuda":
            torch.cuda.empty_cache()
    return row


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
    arguments.add_argument("--agree", nargs=2, type=pathlib.Path, metavar=("STEP", "OURS"), help="compare results instead of timing")
    options = arguments.parse_args()
    device = "cuda" if torch and torch.cuda.is_available() else "cpu"
    if options.agree:
        if torch is None:
            sys.exit(f"nothing compared: {common.NO_TORCH}")
        import agreement

        text, agreed = agreement.compare(*options.agree, device)
        print(text)
        sys.exit(0 if agreed else 1)
    clock = Clock(device)
    full = device == "cuda"
    rows = []
    for noun in (gate, logprob, objective, correction, advantage, ema):
        for case in noun.cases(full):
            for peer in noun.PEERS:
                if case.operation not in peer.operations or not any(text in f"{case} {peer.name}" for text in options.only):
                    continue
                rows.append(measure(peer, case, clock))
                print(f"{len(rows)}: {case.noun} {case.operation} {case.shape}: {peer.name}", file=sys.stderr)
    ran_on = torch.cuda.get_device_name() if full else "cpu"
    version = torch.__version__ if torch else None
    if options.json:
        options.json.write_text(json.dumps({"ran_on": ran_on, "torch": version, "rows": rows}, indent=2) + "\n")
    ours = json.loads(options.ours.read_text())["cases"] if options.ours else []
    print(f"peers on {ran_on}, torch {version or 'not installed'}")
    print(table(rows, ours))


if __name__ == "__main__":
    main()
