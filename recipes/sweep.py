"""Try reward weights and learning rates of the attack, and say which did best.

    python recipes/sweep.py                                   # the demo shop
    accelerate launch recipes/sweep.py --config recipes/wands/train_adversarial.yaml --output_dir \
        runs/sweep --trials 10 --space '{"generator.learning_rate": {"log": [1e-5, 1e-3]}}'

Settings are those of train_adversarial.py and what to try. A rerun of the same command continues
where the last one stopped; a larger --trials goes on. Needs `pip install -e ".[sweep]"`.
"""

import pandas as pd

from agr_trl.adversarial import SECTIONS as LOOP_SECTIONS
from agr_trl.config import SweepArguments, parse_recipe
from agr_trl.runtime import is_main_process, run_recipe, start
from agr_trl.sweep import run_sweep

SECTIONS = LOOP_SECTIONS | {"": (*LOOP_SECTIONS[""], SweepArguments)}


def main() -> None:
    recipe = parse_recipe(SECTIONS, __file__)
    start(recipe[""].values["seed"])
    trials = run_sweep(recipe)
    if is_main_process():
        table = pd.json_normalize(trials)
        table.columns = table.columns.str.removeprefix("settings.")
        print(table.to_string(index=False))
        folder = recipe[""].values["output_dir"]
        print(f"the best trial's settings: {folder}/trial_{trials[0]['trial']:03d}/config.yaml")


if __name__ == "__main__":
    run_recipe(main)
