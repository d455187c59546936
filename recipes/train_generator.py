"""Train the generator by policy gradient: on topic, yet wrong for the frozen retriever.

accelerate launch recipes/train_generator.py                         # the demo shop
ACCELERATE_USE_CPU=true torchrun --nproc_per_node 2 recipes/train_generator.py
accelerate launch recipes/train_generator.py --config recipes/wands/train_generator.yaml
"""

from dataclasses import dataclass, field
from math import inf
from pathlib import Path

import pandas as pd
from trl import RLOOConfig

from agr_trl.config import (
    DataArguments,
    GeneratorArguments,
    LoraArguments,
    Recipe,
    RetrieverArguments,
    RewardArguments,
    SamplingArguments,
    check_ranges,
    parse_recipe,
)
from agr_trl.generator import load_generator, sample_queries
from agr_trl.hub import publish_folder, take_hub_settings
from agr_trl.relevance import load_relevance_scorer
from agr_trl.retriever import trained_retriever
from agr_trl.runtime import (
    exclusive,
    is_main_process,
    require_model,
    run_recipe,
    start,
    train,
)
from agr_trl.search import BM25Index
from agr_trl.seq2seq_trainer import check_arguments, check_prompts
from agr_trl.stages import (
    acceptance_filter,
    attack_rewards,
    begin_run_folder,
    calibrated_relevance,
    catalogue_prompts,
    generator_trainer,
    load_dataset,
    save_log,
)
from agr_trl.terminal import terminal_text
from agr_trl.training_pairs import gold_pairs


@dataclass
class ScriptArguments(GeneratorArguments):
    retriever_name_or_path: str = field(
        kw_only=True, metadata={"help": "The frozen retriever to attack"}
    )
    prompts: int = field(default=0, metadata={"help": "Products to train on (a sample); 0: all"})

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges(self, prompts=(0, inf))


SECTIONS = {"": (DataArguments, ScriptArguments, LoraArguments, RewardArguments, RLOOConfig)}


def main() -> None:
    recipe = parse_recipe(SECTIONS, __file__)
    start(recipe[""].values["seed"])
    check_arguments(recipe[""].build()[-1], rewards=3)
    require_model(recipe[""].values["retriever_name_or_path"], "train_retriever", recipe.is_demo)
    require_model(recipe[""].values["generator_name_or_path"], "warm_up_generator", recipe.is_demo)
    with exclusive(Path(recipe[""].values["output_dir"])):
        attack(recipe)


def attack(recipe: Recipe) -> None:
    data_args, script_args, lora_args, reward_args, args = recipe[""].build()
    hub_token = take_hub_settings(args)

    # 1. Data: the catalogue as prompts
    dataset = load_dataset(data_args)
    begin_run_folder(recipe, Path(args.output_dir), dataset)
    prompts = catalogue_prompts(dataset)
    if script_args.prompts:
        prompts = prompts.sample(min(script_args.prompts, len(prompts)), random_state=args.seed)
    check_prompts(args, len(prompts))

    # 2. The frozen retriever, S(q, d), and the policy
    retriever = trained_retriever(script_args.retriever_name_or_path)
    relevance = load_relevance_scorer(reward_args.relevance_model, dataset.documents)
    index = BM25Index(dataset.documents)
    acceptance = acceptance_filter(reward_args, index, dataset, relevance)
    teacher = None
    if reward_args.loss_reward == "disagreement":  # with the soft label, which is S calibrated
        teacher = calibrated_relevance(
            dataset, relevance.score,
            lambda: gold_pairs(dataset, index, RetrieverArguments(), relevance.score, args.seed),
        )  # fmt: skip
    rewards = attack_rewards(
        [retriever], relevance, acceptance, teacher, dataset.documents, bfloat16=args.bf16
    )
    model, tokenizer = load_generator(script_args.generator_name_or_path)
    trainer = generator_trainer(model, tokenizer, args, lora_args, script_args, prompts, rewards)

    # 3. Train, save, show
    train(trainer)
    folder = Path(args.output_dir)
    if is_main_process():
        trainer.save_model(str(folder / "generator"))
        save_log(trainer, folder / "generator_log.json")
        few = prompts.sample(min(8, len(prompts)), random_state=0)
        sampling = SamplingArguments(
            queries_per_product=3, max_query_tokens=args.max_completion_length
        )
        queries = sample_queries(
            trainer.accelerator.unwrap_model(trainer.model), tokenizer, few["prompt"].tolist(),
            sampling, script_args.max_prompt_tokens,
        )  # fmt: skip
        table = pd.DataFrame(
            {"title": few["title"].str[:60], "queries": [" | ".join(q) for q in queries]}
        )
        print(terminal_text(table.to_string(index=False)))
        print(f"generator: {folder / 'generator'}")
        if hub_token:
            publish_folder(folder / "generator", args, hub_token)


if __name__ == "__main__":
    run_recipe(main)
