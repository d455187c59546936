"""Train the retriever: a cross-encoder that says whether a product is relevant to a query.

python recipes/train_retriever.py                                  # the demo shop
accelerate launch recipes/train_retriever.py --config recipes/wands/train_retriever.yaml
"""

from pathlib import Path

from transformers import TrainingArguments

from agr_trl.bad_numbers import refuse_constant_scores
from agr_trl.config import DataArguments, Recipe, RetrieverArguments, parse_recipe
from agr_trl.evaluation import format_table, score_candidates
from agr_trl.files import write_json
from agr_trl.hub import publish_folder, take_hub_settings
from agr_trl.pretraining import new_or_loaded_retriever
from agr_trl.retriever import check_training, dev_metrics, retriever_trainer
from agr_trl.runtime import exclusive, is_main_process, run_recipe, start, train_and_evaluate
from agr_trl.search import BM25Index
from agr_trl.stages import begin_run_folder, load_dataset
from agr_trl.training_pairs import gold_pairs

SECTIONS = {"": (DataArguments, RetrieverArguments, TrainingArguments)}


def main() -> None:
    recipe = parse_recipe(SECTIONS, __file__)
    start(recipe[""].values["seed"])
    with exclusive(Path(recipe[""].values["output_dir"])):
        train(recipe)


def train(recipe: Recipe) -> None:
    data_args, retriever_args, args = recipe[""].build()
    hub_token = take_hub_settings(args)

    # 1. Data: judged pairs, with BM25 and random negatives for the relevant ones
    dataset = load_dataset(data_args)
    begin_run_folder(recipe, Path(args.output_dir), dataset)
    dev = dataset.pairs("dev")
    check_training(
        args, dev, dataset.has_ids, data_args.relevant_grade, retriever_args.early_stopping_patience
    )
    index = BM25Index(dataset.documents)
    pairs = gold_pairs(dataset, index, retriever_args, scorer=None, seed=args.seed)

    # 2. Model and trainer
    retriever = new_or_loaded_retriever(retriever_args, dataset, args.seed)
    trainer = retriever_trainer(
        retriever,
        args,
        pairs,
        dev,
        dev_metrics(dev, dataset.has_ids, data_args.relevant_grade),
        lora_rank=retriever_args.retriever_lora_rank,
        frozen_layers=retriever_args.frozen_layers,
        without_dropout=retriever_args.disable_dropout,
        early_stopping_patience=retriever_args.early_stopping_patience,
    )

    # 3. Before, training, after
    before, after = train_and_evaluate(trainer)
    refuse_constant_scores(retriever.score, dev)

    # 4. Save what others load, and the numbers of this run
    if is_main_process():
        folder = Path(args.output_dir)
        scored, retriever.blend_weight = None, None  # whatever it began with
        if dataset.has_ids:
            scored = score_candidates(retriever.score, dataset, "dev", index)
            retriever.blend_weight, _ = scored.choose_blend_weight(data_args.relevant_grade)
        retriever.save(folder / "retriever")
        metrics = {"before": before, "after": after}
        if scored is not None:
            metrics["dev"] = scored.evaluate(retriever.blend_weight, data_args.relevant_grade)
            print(format_table(metrics["dev"]))
        write_json(folder / "metrics.json", metrics)
        print(f"dev loss {before['eval_loss']:.4f} -> {after['eval_loss']:.4f} nats")
        if "eval_pr_auc" in after:  # not where dev has one class only
            print(f"dev PR-AUC {before['eval_pr_auc']:.4f} -> {after['eval_pr_auc']:.4f}")
        print(f"retriever: {folder / 'retriever'}")
        if hub_token:
            publish_folder(folder / "retriever", args, hub_token)


if __name__ == "__main__":
    run_recipe(main)
