"""Check a data set before training on it, without loading any model.

    python recipes/validate_data.py --dataset_format beir --dataset_path my_shop

Prints what was understood, what is left out and what looks wrong. Broken data ends it with one line
that names file, line and remedy, and exit status 2.
"""

from dataclasses import dataclass, field
from pathlib import Path

from agr_trl.config import DataArguments, parse_recipe
from agr_trl.data.validation import describe_dataset, format_description, readers_warnings
from agr_trl.files import write_json
from agr_trl.runtime import run_recipe, start
from agr_trl.stages import load_dataset
from agr_trl.terminal import terminal_text


@dataclass
class ScriptArguments:
    max_pair_tokens: int = field(
        default=256, metadata={"help": "Documents of more words are surely cut by the retriever"}
    )
    max_prompt_tokens: int = field(
        default=128, metadata={"help": "Prompts of more words are surely cut by the generator"}
    )
    output_file: str | None = field(default=None, metadata={"help": "JSON file for the same facts"})
    seed: int = field(default=0, metadata={"help": "Unused here; kept for every recipe"})


SECTIONS = {"": (DataArguments, ScriptArguments)}


def main() -> None:
    recipe = parse_recipe(SECTIONS, __file__)
    start(recipe[""].values["seed"])
    data_args, args = recipe[""].build()

    with readers_warnings() as warnings:
        dataset = load_dataset(data_args)
    facts = describe_dataset(
        dataset, data_args.relevant_grade, args.max_pair_tokens, args.max_prompt_tokens
    )
    source = {"format": data_args.dataset_format, "path": data_args.dataset_path}
    facts = {"source": source, "readers_warnings": warnings} | facts
    print(terminal_text(format_description(facts)))
    if args.output_file:
        write_json(Path(args.output_file), facts)


if __name__ == "__main__":
    run_recipe(main)
