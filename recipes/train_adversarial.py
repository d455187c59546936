"""Train a retriever and a query generator against each other, round by round.

    python recipes/train_adversarial.py                       # the demo shop, minutes on a CPU
    accelerate launch recipes/train_adversarial.py --config recipes/wands/train_adversarial.yaml

A rerun of the same command continues where the last one stopped.
"""

from agr_trl.adversarial import SECTIONS, AdversarialRun
from agr_trl.config import parse_recipe
from agr_trl.report import summary_table, write_report
from agr_trl.runtime import is_main_process, run_recipe, start


def main() -> None:
    recipe = parse_recipe(SECTIONS, __file__)
    start(recipe[""].values["seed"])
    run = AdversarialRun(recipe)
    metrics = run.run()
    if is_main_process():
        report = write_report(run.folder)
        print(summary_table(metrics))
        print(f"report: {report}")


if __name__ == "__main__":
    run_recipe(main)
