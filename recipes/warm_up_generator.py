"""Teach the generator to write queries at all: supervised, document to query, before any reward.

python recipes/warm_up_generator.py                                  # the demo shop
accelerate launch recipes/warm_up_generator.py --config recipes/wands/warm_up_generator.yaml
"""

from pathlib import Path

from transformers import Seq2SeqTrainingArguments

from agr_trl.config import DataArguments, Recipe, WarmUpArguments, parse_recipe
from agr_trl.files import write_json
from agr_trl.generator import (
    dev_query_pairs,
    new_or_loaded_generator,
    warm_up_pairs,
    warm_up_trainer,
)
from agr_trl.hub import publish_folder, take_hub_settings
from agr_trl.runtime import exclusive, is_main_process, run_recipe, start, train_and_evaluate
from agr_trl.stages import begin_run_folder, load_dataset

SECTIONS = {"": (DataArguments, WarmUpArguments, Seq2SeqTrainingArguments)}


def main() -> None:
    recipe = parse_recipe(SECTIONS, __file__)
    start(recipe[""].values["seed"])
    with exclusive(Path(recipe[""].values["output_dir"])):
        train(recipe)


def train(recipe: Recipe) -> None:
    data_args, warm_up_args, args = recipe[""].build()
    hub_token = take_hub_settings(args)

    # 1. Data: judged queries of relevant products, and pseudo-queries from the catalogue's titles
    dataset = load_dataset(data_args)
    begin_run_folder(recipe, Path(args.output_dir), dataset)
    pairs = warm_up_pairs(dataset, warm_up_args, args.seed)
    dev = dev_query_pairs(dataset)

    # 2. Model and trainer
    model, tokenizer = new_or_loaded_generator(warm_up_args, dataset)
    trainer = warm_up_trainer(model, tokenizer, args, warm_up_args, pairs, dev)

    # 3. Before, training, after
    before, after = train_and_evaluate(trainer)

    # 4. Save
    if is_main_process():
        folder = Path(args.output_dir)
        model.save_pretrained(folder / "generator")
        tokenizer.save_pretrained(folder / "generator")
        metrics = {"before": before, "after": after}
        write_json(folder / "metrics.json", metrics)
        print(f"dev loss {before['eval_loss']:.3f} -> {after['eval_loss']:.3f} nats a token")
        print(f"generator: {folder / 'generator'}")
        if hub_token:
            publish_folder(folder / "generator", args, hub_token)


if __name__ == "__main__":
    run_recipe(main)
