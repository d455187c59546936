"""Publish a finished run on the Hugging Face Hub: retriever, generator and accepted queries.

    python recipes/push_to_hub.py runs/demo --repo_id user/name --private

Makes `user/name-retriever`, `user/name-generator` and the data set `user/name-queries`. Log in
first with `hf auth login`.
"""

from dataclasses import dataclass, field
from pathlib import Path

from agr_trl.config import parse_recipe
from agr_trl.errors import UserError
from agr_trl.hub import publish_run
from agr_trl.runtime import run_recipe, start


@dataclass
class ScriptArguments:
    run_dir: str = field(
        metadata={
            "help": "Folder of a finished run of train_adversarial.py; may also stand first, bare"
        }
    )
    repo_id: str = field(default="", metadata={"help": "user/name, the beginning of three names"})
    private: bool = field(
        default=False, metadata={"help": "New repositories are private, public ones refused"}
    )
    merged_generator: bool = field(
        default=False, metadata={"help": "A generator that needs no base model, not an adapter"}
    )
    licence: str = field(
        default="unknown", metadata={"help": "What the cards say, as the Hub writes it: apache-2.0"}
    )
    seed: int = field(default=0, metadata={"help": "Unused here; kept for every recipe"})


SECTIONS = {"": (ScriptArguments,)}


def main() -> None:
    recipe = parse_recipe(SECTIONS, __file__, first_word="run_dir")
    start(recipe[""].values["seed"])
    (args,) = recipe[""].build()
    if not args.repo_id:
        raise UserError("give the repositories a name, `--repo_id user/name`")
    for address in publish_run(
        Path(args.run_dir),
        args.repo_id,
        private=args.private,
        merged_generator=args.merged_generator,
        licence=args.licence,
    ):
        print(address)


if __name__ == "__main__":
    run_recipe(main)
