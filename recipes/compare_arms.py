"""Train the adversarial retriever and its controls on the same folds, and test the difference.

    python recipes/compare_arms.py                            # the demo shop
    python recipes/compare_arms.py --config recipes/wands_pairs/compare_arms.yaml --workers 2

A rerun of the same command continues where the last one stopped; --seeds 10 adds seeds.
"""

from pathlib import Path

from agr_trl.adversarial import SECTIONS as LOOP_SECTIONS
from agr_trl.arms import run_arms
from agr_trl.comparison_report import write_comparison_report
from agr_trl.config import ComparisonArguments, parse_recipe
from agr_trl.evidence import build_evidence
from agr_trl.evidence_tables import evidence_table
from agr_trl.files import read_json, write_json
from agr_trl.runtime import run_recipe, start

SECTIONS = LOOP_SECTIONS | {"": (*LOOP_SECTIONS[""], ComparisonArguments)}


def main() -> None:
    recipe = parse_recipe(SECTIONS, __file__)
    start(recipe[""].values["seed"])
    folder, seeds = run_arms(recipe)
    _, data, _, comparison = recipe[""].build()
    begun = read_json(folder / "run.json")
    evidence = build_evidence(
        folder,
        comparison.primary_metric,
        seeds,
        comparison.folds,
        dataset=Path(data.dataset_path or data.dataset_format).name,
        commit=begun["commit"],
        hardware=begun["hardware"],
        arms=comparison.arms,
        ablations=comparison.ablation_changes,
        resamples=comparison.resamples,
    )
    write_json(folder / "evidence.json", evidence)
    report = write_comparison_report(folder)
    print(evidence_table(evidence))
    print(f"report: {report}")


if __name__ == "__main__":
    run_recipe(main)
