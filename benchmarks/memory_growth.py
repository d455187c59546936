"""Peak memory of one RL step as groups and prompts grow, with each product encoded once and anew.

    python benchmarks/memory_growth.py --output benchmarks/memory_growth.json

The step is that of rl_step.py, four products, each in a process of its own. How memory grows with
the catalogue is measured by large_catalogue.py: a step holds a few products, whatever their number.
"""

import argparse
import tempfile
from pathlib import Path

import rl_step
from environments import PROJECT
from inputs import write_inputs
from measure import PROMPT_TOKENS
from run import run_once

from agr_trl.files import write_json
from agr_trl.runtime import commit, hardware, run_recipe

GROUPS = (4, 8, 16, 32)
PROMPTS = (32, 64, 128, 256)  # tokens
ONCE, _, ANEW = list(rl_step.CONTESTANTS)[:3]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, help="write what was measured as JSON")
    options = parser.parse_args()
    by_group = [(group, PROMPT_TOKENS) for group in GROUPS]
    by_prompt = [(rl_step.GROUP, tokens) for tokens in PROMPTS]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        inputs = Path(folder) / "inputs"
        write_inputs(inputs, products=200)
        for group, tokens in dict.fromkeys(by_group + by_prompt):
            sizes = {"products": 4, "repeats": 1, "group": group, "prompt_tokens": tokens}
            row = {"group": group, "prompt_tokens": tokens}
            for name in (ONCE, ANEW):
                row[name] = run_once(rl_step, PROJECT, name, inputs, sizes)["peak_memory_mib"]
            print(row)
            rows.append(row)
    if options.output:
        found = {"unit": "MiB", "machine": hardware(), "commit": commit(), "rows": rows}
        write_json(options.output, found)


if __name__ == "__main__":
    run_recipe(main)
