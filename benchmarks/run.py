"""Measure agr_trl beside what a user would pick instead, on the same inputs, in one run.

    python benchmarks/run.py --quick                       # minutes, small sizes
    python benchmarks/run.py --output benchmarks/results.json
    python benchmarks/run.py --only rl_step,score_pairs --rounds 5

Each contestant is a process of its own; contestants take turns, round after round, so that what
else the machine does meets all alike. A rate is the median over rounds of units a second; the ratio
is ours over theirs, which is what counts, since machines differ. The first call of each process is
not timed. Peers' environments are made at their first use (environments.py). With `--output` a
work is written when it is measured, with its commit, and the same command goes on behind it; to
measure one anew, take it out of the file.
"""

import argparse
import importlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

import numpy as np
import torch
from environments import PROJECT, python_of
from inputs import write_inputs
from make_full_size_wands import write_full_size_wands

from agr_trl.files import read_json, write_json
from agr_trl.runtime import commit, hardware, matrix_speed, run_recipe

HERE = Path(__file__).parent
WORKS = ("rl_step", "write_queries", "score_pairs", "train_retriever", "search", "load_data")
CATALOGUE = 19_406  # products, as in Icecat's catalogue of the Chorus project


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small sizes, one round")
    parser.add_argument("--only", default=",".join(WORKS), help=f"of {','.join(WORKS)}")
    parser.add_argument("--rounds", type=int, default=None, help="turns of each (default 3)")
    parser.add_argument("--output", type=Path, help="write what was measured as JSON")
    options = parser.parse_args()
    names = options.only.split(",")
    if unknown := set(names) - set(WORKS):
        parser.error(f"--only names {', '.join(sorted(unknown))}; known are {', '.join(WORKS)}")
    rounds = options.rounds or (1 if options.quick else 3)
    begun = {"machine": hardware(), "quick": options.quick, "rounds": rounds}
    result = begun | {"works": finished_works(options.output, begun, parser.error)}
    with tempfile.TemporaryDirectory() as folder:
        inputs = Path(folder) / "inputs"
        write_inputs(inputs, products=2_000 if options.quick else CATALOGUE)
        for name in names:
            if name not in result["works"]:
                measured = measured_work(name, inputs, options.quick, rounds)
                result["works"][name] = {"commit": commit()} | measured
                if options.output:
                    write_json(options.output, result)
    print(as_table(result))


def finished_works(output: Path | None, begun: dict, refuse) -> dict:
    """Return the works that a stopped run of the same kind has measured; refuse another's file."""
    if output is None or not output.is_file():
        return {}
    found = read_json(output)
    works = found.pop("works", {})
    if found != begun:
        refuse(f"{output} holds other measurements ({found}); give another --output, or remove it")
    return works


def measured_work(name: str, inputs: Path, quick: bool, rounds: int) -> dict:
    """Measure one work, with what is told beside its table."""
    work = importlib.import_module(name)
    sizes = work.QUICK if quick else work.SIZES
    if name == "load_data":
        queries = sizes["queries"]
        judged = 233_448 * queries // 480
        write_full_size_wands(inputs / f"wands_{queries}", queries=queries, judgements=judged)
    measured = measure(work, inputs, sizes, rounds)
    if hasattr(work, "BFLOAT16") and work.BFLOAT16 in measured["contestants"]:
        add_bfloat16(measured, work)
    if name == "rl_step":
        add_floor(measured, work)
    return measured


def measure(work, inputs: Path, sizes: dict, rounds: int) -> dict:
    """Return, for each contestant of a work, its rate, its ratio to ours and its memory.

    bfloat16 is left out where the processor is slower at it, as all without avx512_bf16 or amx are.
    """
    contestants = dict(work.CONTESTANTS)
    if hasattr(work, "BFLOAT16") and matrix_speed(512, dtype=torch.bfloat16) < matrix_speed(512):
        print(f"{work.__name__}: this processor is slow at bfloat16, left out", file=sys.stderr)
        del contestants[work.BFLOAT16]
    runs: dict[str, list[dict]] = {name: [] for name in contestants}
    for turn in range(rounds):
        for name, environment in contestants.items():
            print(f"{work.__name__}: {name}, {turn + 1} of {rounds}", file=sys.stderr)
            runs[name].append(run_once(work, environment, name, inputs, sizes))
    rows = {}
    for name, found in runs.items():
        seconds = [second for run in found for second in run["seconds"]]
        extra = {k: v for k, v in found[-1].items() if k not in ("units", "seconds", "check")}
        rows[name] = extra | {
            "rate": median(found[0]["units"] / second for second in seconds),
            "seconds": seconds,
            "p99_seconds": float(np.quantile(seconds, 0.99)),
            "peak_memory_mib": max(run["peak_memory_mib"] for run in found),
        }
    for name, row in rows.items():
        row["ratio"] = rows[work.OURS]["rate"] / row["rate"]
        row["goal"] = work.GOALS.get(name)
        if runs[name][0]["check"]:
            apart = np.subtract(runs[work.OURS][0]["check"], runs[name][0]["check"])
            row["largest_difference"] = float(np.abs(apart).max())
            if row["largest_difference"] > work.TOLERANCE:
                sys.exit(f"{work.__name__}: {name} gives other results than {work.OURS}: {row}")
    return {"unit": work.UNIT, "sizes": sizes, "contestants": rows}


def run_once(work, environment: str, name: str, inputs: Path, sizes: dict) -> dict:
    """Run one contestant in its environment and return what it tells."""
    command = [python_of(environment), work.__file__, name, str(inputs), json.dumps(sizes)]
    quiet = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONWARNINGS": "ignore"}
    if environment == PROJECT:
        quiet["PYTHONPATH"] = str(HERE.parent)
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | quiet)
    if done.returncode:
        sys.exit(f"{work.__name__}: {name} failed\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def add_bfloat16(measured: dict, work) -> None:
    """Add how we compare with the peers at our fastest setting."""
    rates = {name: row["rate"] for name, row in measured["contestants"].items()}
    measured["bfloat16"] = [
        {"contestant": name, "goal": goal, "ratio": rates[work.BFLOAT16] / rates[name]}
        for name, goal in work.BFLOAT16_GOALS.items()
    ]


def add_floor(measured: dict, rl_step) -> None:
    """Add how far our step is above the least time in which the machine could do it."""
    ours = measured["contestants"][rl_step.OURS]
    least = rl_step.least_operations(measured["sizes"]["products"])
    speed = matrix_speed()
    measured["floor"] = {
        "least_operations": least,
        "counted_operations": ours["operations"],
        "machine_operations_a_second": speed,
        "time_over_floor": median(ours["seconds"]) / (least / speed),
    }


def as_table(result: dict) -> str:
    """Return the result as Markdown."""
    lines = [
        f"{result['machine']}, {result['rounds']} round(s)",
        "",
        "| work | contestant | a second | ours is | goal | peak memory |",
        "|---|---|---|---|---|---|",
    ]
    for name, work in result["works"].items():
        for contestant, row in work["contestants"].items():
            is_ours = row["goal"] is None
            lines.append(
                f"| {name} | {contestant} | {row['rate']:.3g} {work['unit']} | "
                f"{'' if is_ours else format(row['ratio'], '.2f') + ' x'} | "
                f"{'' if is_ours else format(row['goal'], 'g') + ' x'} | "
                f"{row['peak_memory_mib']:,.0f} MiB |"
            )
    commits = [f"{name} {work['commit'][:7]}" for name, work in result["works"].items()]
    lines += ["", f"commits: {', '.join(commits)}"]
    for name, work in result["works"].items():
        for row in work.get("bfloat16", []):
            told = f"{row['ratio']:.2f} x {row['contestant']}, goal {row['goal']:g} x"
            lines += ["", f"{name} in bfloat16 is {told}"]
    if floor := result["works"].get("rl_step", {}).get("floor"):
        lines += ["", f"rl_step: {floor['time_over_floor']:.2f} times the machine's least time"]
    return "\n".join(lines)


if __name__ == "__main__":
    run_recipe(main)
