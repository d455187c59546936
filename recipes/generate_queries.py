"""Write queries for every product of a catalogue, to Parquet files in a folder.

    python recipes/generate_queries.py                                   # the demo shop
    accelerate launch recipes/generate_queries.py --dataset_format beir --dataset_path data/icecat \
        --generator_name_or_path runs/icecat/generator --output_dir runs/icecat_queries

A rerun goes on with the missing chunks. Read them all with `pandas.read_parquet(output_dir)`. With
`--streaming` a catalogue may be larger than memory; machines that only share a file system each run
the same command with `--num_shards 2 --shard_index 0` (and 1).
"""

from pathlib import Path

from agr_trl.config import (
    DataArguments,
    QueryFileArguments,
    RunArguments,
    as_yaml,
    parse_recipe,
)
from agr_trl.data import files_fingerprint, stream_prompts
from agr_trl.files import write_text
from agr_trl.generator import weights_fingerprint
from agr_trl.query_files import write_query_files
from agr_trl.runtime import is_main_process, require_model, run_recipe, start, wait_for_everyone
from agr_trl.stages import load_dataset, refuse_other_settings

SECTIONS = {"": (RunArguments, DataArguments, QueryFileArguments)}


def main() -> None:
    recipe = parse_recipe(SECTIONS, __file__)
    start(recipe[""].values["seed"])
    run_args, data_args, args = recipe[""].build()
    require_model(args.generator_name_or_path, "train_generator", recipe.is_demo)

    # 1. The catalogue; a folder begun with other settings is not mixed with these
    if args.streaming:
        prompts = stream_prompts(data_args.dataset_format, data_args.dataset_path)
        fingerprint = files_fingerprint(data_args.dataset_format, data_args.dataset_path)
    else:
        dataset = load_dataset(data_args)
        prompts, fingerprint = dataset.prompts(), dataset.fingerprint()
    if args.products:
        prompts = prompts.take(args.products) if args.streaming else prompts.head(args.products)
    folder = Path(run_args.output_dir)
    weights = weights_fingerprint(args.generator_name_or_path)
    settings = recipe.resolved() | {"data_fingerprint": fingerprint, "weights": weights}
    for name in ("output_dir", "num_shards", "shard_index"):
        del settings[name]
    settings_file = folder / "_settings.yaml"  # pandas reads no file whose name begins so
    if settings_file.is_file():  # of an older version, it lacks these two
        later = {"weights": weights, "streaming": args.streaming}
        refuse_other_settings(settings_file, settings, defaults=later)
    wait_for_everyone()
    if is_main_process():
        write_text(settings_file, as_yaml(settings))

    # 2. Write, each process its chunks
    paths = write_query_files(
        args.generator_name_or_path, prompts, folder, args, args.max_prompt_tokens, run_args.seed,
        args.shard_index, args.num_shards,
    )  # fmt: skip
    if is_main_process():
        missing = sum(not path.is_file() for path in paths)
        print(f"{len(paths)} files in {folder}; {missing} of them left to other shards")


if __name__ == "__main__":
    run_recipe(main)
