"""One RL step by one process on one core, by one on two cores and by two on a core each.

    python benchmarks/two_processes.py --output benchmarks/two_processes.json

The step is that of rl_step.py, four products a process, so two processes write twice the queries a
step. The three take turns; a rate is the median over all steps.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

import rl_step
from inputs import write_inputs

from agr_trl.files import write_json
from agr_trl.runtime import commit, hardware, run_recipe

WAYS = {"one process, one core": (1, 1), "one process, two cores": (1, 2), "two processes": (2, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="turns of each")
    parser.add_argument("--output", type=Path, help="write what was measured as JSON")
    options = parser.parse_args()
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as folder:
        inputs = Path(folder) / "inputs"
        write_inputs(inputs, products=200)
        for _ in range(options.rounds):
            for way, (processes, cores) in WAYS.items():
                seconds[way] += steps(inputs, processes, cores)
    written = rl_step.SIZES["products"] * rl_step.GROUP
    rows = {
        way: {"queries_a_second": processes * written / median(seconds[way])}
        | {"processes": processes, "cores": cores, "seconds": seconds[way]}
        for way, (processes, cores) in WAYS.items()
    }
    print("\n".join(f"{way}: {row['queries_a_second']:.2f} a second" for way, row in rows.items()))
    if options.output:
        write_json(options.output, {"machine": hardware(), "commit": commit(), "ways": rows})


def steps(inputs: Path, processes: int, cores: int) -> list[float]:
    """Return the seconds of each step, of the slower process where there are two."""
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    work = [rl_step.__file__, rl_step.OURS, str(inputs), json.dumps(rl_step.SIZES)]
    environment = os.environ | {
        "PYTHONPATH": str(Path(__file__).parents[1]),
        "OMP_NUM_THREADS": str(cores),
        "ACCELERATE_USE_CPU": "true",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    command = [sys.executable, *launch, *work]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        sys.exit(f"{processes} process(es) failed\n{done.stderr[-3000:]}")
    told = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"units"')]
    assert len(told) == processes, done.stdout
    return [max(of_step) for of_step in zip(*(each["seconds"] for each in told), strict=True)]


if __name__ == "__main__":
    run_recipe(main)
