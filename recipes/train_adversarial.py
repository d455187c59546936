"""Train a retriever and a query generator against each other, round by round.

    python recipes/train_adversarial.py                       # the demo shop, minutes on a CPU
    accelerate launch recipes/train_adversarial.py --config recipes/wands/train_adversarial.yaml

A rerun of the same command continues where the last one stopped. With
`--push_to_hub --hub_model_id user/name` the finished run is published as recipes/push_to_hub.py
does it.
"""

from agr_trl.adversarial import SECTIONS as LOOP_SECTIONS
from agr_trl.adversarial import AdversarialRun
from agr_trl.config import HubArguments, parse_recipe
from agr_trl.hub import publish_run, take_hub_settings
from agr_trl.report import summary_table, write_report
from agr_trl.runtime import is_main_process, run_recipe, start

SECTIONS = LOOP_SECTIONS | {"": (*LOOP_SECTIONS[""], HubArguments)}


def main() -> None:
    recipe = parse_recipe(SECTIONS, __file__)
    start(recipe[""].values["seed"])
    hub_args = recipe[""].build()[-1]
    hub_token = take_hub_settings(hub_args)
    run = AdversarialRun(recipe)
    metrics = run.run()
    if is_main_process():
        report = write_report(run.folder)
        print(summary_table(metrics))
        print(f"report: {report}")
        if hub_token:
            private = hub_args.hub_private_repo
            for address in publish_run(run.folder, hub_args.hub_model_id, private=private):
                print(address)


if __name__ == "__main__":
    run_recipe(main)
