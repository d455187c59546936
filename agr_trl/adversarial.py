"""The adversarial loop: rounds on disk, each stage reading files and writing files.

round_00  R learns S, if asked, then judged pairs; G is warmed up; its queries are only looked at.
round_k   R is frozen and attacked by G; G's queries are filtered; R, from the best so far, learns
          from them and from the judged pairs again; dev says whether the round is kept.

    round_kk/generator/ -> round_kk/queries.parquet -> round_kk/retriever/ -> round_kk/metrics.json

A stage whose output exists is skipped, and an output appears under its name only when whole, so the
same command resumes. Only the main process writes; the others help to train and to write queries.
"""

import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from accelerate.utils import set_seed
from scipy.special import expit
from transformers import Seq2SeqTrainingArguments, TrainingArguments
from trl import RLOOConfig

from agr_trl.acceptance import (
    AcceptanceFilter,
    independent_scores,
    query_statistics,
    refuse_useless_queries,
)
from agr_trl.bad_numbers import refuse_constant_scores
from agr_trl.config import (
    DataArguments,
    LoopArguments,
    LoraArguments,
    PromptArguments,
    Recipe,
    RetrieverArguments,
    RewardArguments,
    RunArguments,
    WarmUpArguments,
)
from agr_trl.data import RelevanceDataset
from agr_trl.errors import UserError
from agr_trl.evaluation import RANKING_METRICS, Metrics, score_candidates
from agr_trl.files import read_json, write_json, write_parquet
from agr_trl.generator import (
    dev_query_pairs,
    load_generator,
    new_or_loaded_generator,
    save_merged_generator,
    title_spans,
    warm_up_pairs,
    warm_up_trainer,
)
from agr_trl.loading import load_config, resolve_model_name
from agr_trl.pretraining import distillation_pairs, new_or_loaded_retriever
from agr_trl.query_files import read_queries, write_query_files
from agr_trl.relevance import EmbeddingScorer, Teacher, load_relevance_scorer
from agr_trl.retriever import (
    Retriever,
    check_architecture,
    check_training,
    dev_metrics,
    is_classifier,
    retriever_trainer,
)
from agr_trl.rewards import excess_loss
from agr_trl.runtime import exclusive, is_main_process, stopwatch, wait_for_everyone
from agr_trl.search import BM25Index, score_distinct
from agr_trl.seq2seq_trainer import check_arguments, check_prompts, refuse_sharding
from agr_trl.stages import (
    FREE_SETTINGS,
    acceptance_filter,
    attack_rewards,
    begin_run_folder,
    calibrated_relevance,
    catalogue_prompts,
    demo_oracle,
    fitted_teacher,
    generator_trainer,
    load_dataset,
    remove_checkpoints,
    save_log,
    train_stage,
)
from agr_trl.training_pairs import gold_pairs, mix, synthetic_labels, synthetic_pairs

logger = logging.getLogger(__name__)

SECTIONS: dict[str, Sequence[type]] = {
    "": (RunArguments, DataArguments, LoopArguments),
    "retriever": (RetrieverArguments, TrainingArguments),
    "warm_up": (WarmUpArguments, Seq2SeqTrainingArguments),
    "generator": (PromptArguments, LoraArguments, RLOOConfig),  # G itself is the warm-up's
    "reward": (RewardArguments,),
}
PAIR_METRICS = ("roc_auc", "pr_auc", "f1", "accuracy")
QUERIES_FILE = "queries.parquet"
STARTING_RETRIEVER = "starting_retriever"  # before any judgement


class AdversarialRun:
    """One run folder: what its stages share, and the stages in the order in which they run."""

    def __init__(
        self, recipe: Recipe, dataset: RelevanceDataset | None = None, start: Path | None = None
    ) -> None:
        """Prepare a run on the data that the settings name, or on `dataset`.

        `start` is the run folder whose round 0 this run begins from; by default its own.
        """
        refuse_sharding()  # not only when the retriever is trained and G's turn comes
        self.recipe = recipe
        self.run_args, self.data_args, self.loop = recipe[""].build()[:3]
        self.retriever_args: RetrieverArguments = recipe["retriever"].build(output_dir="unused")[0]
        self.warm_up_args: WarmUpArguments = recipe["warm_up"].build(output_dir="unused")[0]
        self.reward_args: RewardArguments = recipe["reward"].build()[0]
        self.folder = Path(self.run_args.output_dir)
        self.seed: int = self.run_args.seed
        self.times: dict[str, float] = {}
        self.start = start or self.folder
        self._ensembles: dict[Path, Teacher] = {}  # by the retriever that is one of the judges
        self.free_settings = FREE_SETTINGS  # that may differ when the run is resumed
        self.is_looked_at = True  # keep what is for the reader of a run folder alone
        self.dataset = load_dataset(self.data_args) if dataset is None else dataset
        self._check_dev_metric()
        self._check_start()
        if self.loop.query_source == "adversarial":
            args = recipe["generator"].build(output_dir="unused")[2]
            check_arguments(args, rewards=3)
            check_prompts(args, min(self.loop.prompts_per_round, len(self.dataset.products)))

    # --- What stages share, computed at first use ------------------------------------------------

    @cached_property
    def index(self) -> BM25Index:
        """BM25 over the whole catalogue."""
        return BM25Index(self.dataset.documents)

    @cached_property
    def relevance(self) -> EmbeddingScorer:
        """S, which is never the retriever."""
        return load_relevance_scorer(self.reward_args.relevance_model, self.dataset.documents)

    @cached_property
    def calibrated(self) -> Teacher:
        """S turned into probabilities on the train pairs: a teacher, and the cosine baseline."""
        return calibrated_relevance(self.dataset, self.relevance.score, lambda: self.gold)

    @cached_property
    def acceptance(self) -> AcceptanceFilter:
        """The rules that a generated query must pass."""
        return acceptance_filter(self.reward_args, self.index, self.dataset, self.relevance)

    @cached_property
    def prompts(self) -> pd.DataFrame:
        """The catalogue as prompts: product_id, document, prompt, title, product_index."""
        return catalogue_prompts(self.dataset)

    @cached_property
    def gold(self) -> pd.DataFrame:
        """Judged train pairs with mined negatives."""
        return gold_pairs(
            self.dataset, self.index, self.retriever_args, self.relevance.score, self.seed
        )

    # --- The loop --------------------------------------------------------------------------------

    def run(self) -> dict[str, Any]:
        """Run or resume all rounds; return what the run folder's metrics.json holds."""
        with exclusive(self.folder):
            self.run_rounds(self.loop.rounds)
            summary = self._finish()
            wait_for_everyone()
        return summary

    def run_rounds(self, last: int) -> None:
        """Run or resume the rounds up to `last`."""
        self._begin()
        for number in range(last + 1):
            folder = self.round_folder(number)
            if (folder / "metrics.json").is_file():
                logger.info("round %d is complete, skipped", number)
            else:
                self._run_round(number, folder)
            self._prune(number)

    def attack(self) -> Path:
        """Run or resume round 1 as far as its generator, from a round 0 that is there.

        Returns the file of what its training logged.
        """
        self._begin()
        folder = self.round_folder(1)
        self._stage(folder / "generator", self._stage_seed(1), self._train_generator, 1)
        return folder / "generator_log.json"

    def _stage_seed(self, number: int) -> int:
        """Return the seed of a round's first stage; the others count on from it."""
        return (self.seed * 1_000 + number * 10) % 2**32

    def _run_round(self, number: int, folder: Path) -> None:
        stage_seed = self._stage_seed(number)
        source = self._query_source(number)
        if not number:
            self._check_models()
            self._stage(folder / "generator", stage_seed, self._warm_up, number)
            if self._keeps_start:
                self._stage(
                    folder / STARTING_RETRIEVER, stage_seed + 5, self.start_retriever, number
                )
            self._stage(folder / "retriever", stage_seed + 1, self._train_retriever, number)
        elif source == "adversarial":
            self._stage(folder / "generator", stage_seed, self._train_generator, number)
        if source != "none":
            self._stage(folder / QUERIES_FILE, stage_seed + 2, self._write_queries, number)
        if number:
            self._stage(folder / "retriever", stage_seed + 3, self._train_retriever, number)
        self._stage(folder / "metrics.json", stage_seed + 4, self._evaluate_round, number)

    def _stage(
        self, target: Path, seed: int, work: Callable[[Path, int], None], number: int
    ) -> None:
        """Run a stage on all processes unless its output is there; it appears when whole."""
        is_done = target.exists()
        wait_for_everyone()  # nobody may see the output of a stage that another has yet to enter
        if is_done:
            return
        name = f"round {number}: {work.__name__.strip('_').replace('_', ' ')}"
        logger.info("%s", name)
        partial = target.with_name(f"{target.name}.partial")
        target.parent.mkdir(parents=True, exist_ok=True)
        if is_main_process():  # what a stopped job left half written; PEFT would add to it
            if partial.is_dir():
                shutil.rmtree(partial)
            partial.unlink(missing_ok=True)
        wait_for_everyone()
        set_seed(seed)
        with stopwatch(self.times, name):
            work(partial, number)
        wait_for_everyone()
        if is_main_process():
            partial.replace(target)
            remove_checkpoints(target.parent)
            write_json(self.folder / "timings.json", self.times)
        wait_for_everyone()

    def _prune(self, number: int) -> None:
        """Remove the models that no round after this one needs, as `kept_models` says."""
        limit = self.loop.kept_models
        if limit is None or not is_main_process():
            return
        needed = {*self._attacked_rounds(number + 1), *range(number - limit + 1, number + 1)}
        # Later rounds choose the hardest of this round's queries anew, by labels of its retriever.
        chooses = self.loop.keep_old_queries and self.loop.hardest_of > 1
        is_judge = chooses and self.loop.teacher == "ensemble"
        for past in set(range(1, number)) - needed:
            for name in ("generator",) if is_judge else ("retriever", "generator"):
                shutil.rmtree(self.round_folder(past) / name, ignore_errors=True)

    def _warm_up(self, target: Path, number: int) -> None:
        is_evaluated = self.recipe["warm_up"].values["eval_strategy"] != "no"
        dev = dev_query_pairs(self.dataset, is_evaluated=is_evaluated)
        self._write_warm_generator(target, self.warm_up_args, dev)

    def warm_up_on_titles(self, target: Path, steps: int) -> None:
        """Write a generator that has learned the catalogue's pseudo-queries, and no judgement yet.

        Nor any query: its word pieces are the catalogue's.
        """
        changes = {"max_steps": steps, "eval_strategy": "no", "load_best_model_at_end": False}
        settings = replace(self.warm_up_args, gold_repeats=0)
        self._write_warm_generator(target, settings, None, **changes)

    def _write_warm_generator(
        self, target: Path, settings: WarmUpArguments, dev: pd.DataFrame | None, **changes: Any
    ) -> None:
        args = self.recipe["warm_up"].build(
            output_dir=str(target.with_name("generator_checkpoints")), seed=self.seed, **changes
        )[1]
        model, tokenizer = new_or_loaded_generator(settings, self.dataset)
        train = warm_up_pairs(self.dataset, settings, self.seed)
        logger.info("warm-up on %s pairs", train["kind"].value_counts().to_dict())
        trainer = warm_up_trainer(model, tokenizer, args, settings, train, dev)
        train_stage(trainer)
        if is_main_process():
            model.save_pretrained(target)
            tokenizer.save_pretrained(target)
            save_log(trainer, target.with_name("generator_log.json"))

    def _train_generator(self, target: Path, number: int) -> None:
        settings, lora, args = self.recipe["generator"].build(
            output_dir=str(target.with_name("generator_checkpoints")), seed=self.seed + number
        )
        start = self._generator_to_attack_with(number)
        model, tokenizer = load_generator(str(start))
        attacked = [self._retriever_of(past) for past in self._attacked_rounds(number)]
        chosen = self.prompts.sample(
            min(self.loop.prompts_per_round, len(self.prompts)), random_state=self.seed + number
        )
        rewards = attack_rewards(
            [Retriever.from_pretrained(str(path)) for path in attacked],
            self.relevance,
            self.acceptance,
            self._teacher(number),
            self.dataset.documents,
            bfloat16=args.bf16,
        )
        trainer = generator_trainer(model, tokenizer, args, lora, settings, chosen, rewards)
        train_stage(trainer)
        if is_main_process():
            trainer.save_model(str(target))
            (target / "training_args.bin").unlink(missing_ok=True)
            save_log(trainer, target.with_name("generator_log.json"))

    def _write_queries(self, target: Path, number: int) -> None:
        """Write queries for products drawn without replacement, until enough are accepted.

        One draw is enough without `synthetic_queries_per_round`, and in round 0, whose queries are
        only looked at.
        """
        products = self.prompts.sample(frac=1, random_state=self.seed + 100 + number)
        size = self.loop.products_per_round
        wanted = (
            (self.loop.synthetic_queries_per_round or 0) * self.loop.hardest_of if number else 0
        )
        parts = target.with_name("queries_parts")
        tables: list[pd.DataFrame] = []
        for draw in range(self.loop.max_draws):
            chosen = products.iloc[draw * size : (draw + 1) * size].reset_index(drop=True)
            if len(chosen):
                tables.append(self._draw_queries(chosen, parts / f"draw_{draw}", number, draw))
            accepted = sum(int(table["accepted"].sum()) for table in tables)
            if accepted >= wanted:
                break
        if accepted < wanted:
            logger.warning("round %d: %d queries accepted of %d wanted", number, accepted, wanted)
        written = pd.concat(tables, ignore_index=True)
        refuse_useless_queries(written["query"].tolist(), written["product_id"].nunique())
        if is_main_process():
            written.to_parquet(target, index=False)
            shutil.rmtree(parts, ignore_errors=True)

    def _draw_queries(
        self, chosen: pd.DataFrame, folder: Path, number: int, draw: int
    ) -> pd.DataFrame:
        """Draw queries for some products on all processes; the main one judges them."""
        judged = folder / "judged.parquet"
        is_done = judged.is_file()
        wait_for_everyone()
        if not is_done:
            seed = self.seed * 1_000 + number + 100 * draw
            source = self._query_source(number)
            if source == "random_crops":
                crops = title_spans(chosen["title"], self.loop.queries_per_product, seed)
                drawn = chosen.drop(columns="prompt").assign(query=crops)
                drawn = drawn.explode("query", ignore_index=True)
            else:
                writer = self.round_folder(number if source == "adversarial" else 0) / "generator"
                stage = "generator" if source == "adversarial" else "warm_up"
                tokens = self.recipe[stage].values["max_prompt_tokens"]
                paths = write_query_files(writer, chosen, folder, self.loop, tokens, seed)
                drawn = pd.concat([pd.read_parquet(path) for path in paths], ignore_index=True)
            if is_main_process():
                write_parquet(judged, self._judge(drawn, number))
            wait_for_everyone()
        table = pd.read_parquet(judged)
        wait_for_everyone()  # the main process removes the file when all have read it
        return table

    def _judge(self, drawn: pd.DataFrame, number: int) -> pd.DataFrame:
        """Add relevance, the attacked retriever's probability, and why a query is not accepted.

        Where nobody looks at the run, the retriever is asked about accepted queries alone: most are
        not, and NaN stands for them.
        """
        retriever = self.judge_at(self._best_retriever(number))
        queries, documents = drawn["query"].tolist(), drawn["document"].tolist()
        relevance = independent_scores(self.relevance, queries, documents)
        reasons = self.acceptance.reasons(
            queries,
            documents,
            drawn["title"].tolist(),
            drawn["product_index"].to_numpy(),
            relevance,
        )
        judged = drawn.assign(
            round=number,
            probability=np.nan,
            relevance=relevance,
            reason=reasons,
            accepted=[not reason for reason in reasons],
        )
        asked = judged if self.is_looked_at else judged[judged["accepted"]]
        log_odds = score_distinct(
            retriever.score, asked["query"].tolist(), asked["document"].tolist()
        )
        judged.loc[asked.index, "probability"] = expit(log_odds)
        return judged

    @property
    def _keeps_start(self) -> bool:
        return bool(self.loop.distillation_steps or self.loop.lesson_averaging)

    def start_retriever(self, target: Path, number: int) -> None:
        """Write the retriever as it is before any judgement."""
        if self.loop.distillation_steps:
            self.distil_relevance(target, number)
            return
        retriever = new_or_loaded_retriever(self.retriever_args, self.dataset, self.seed)
        if is_main_process():
            retriever.save(target)

    def distil_relevance(self, target: Path, number: int) -> None:
        """Write a retriever that has learned S, and no judgement yet."""
        steps = self.loop.distillation_steps
        args = self.recipe["retriever"].build(
            output_dir=str(target.with_name("distillation_checkpoints")),
            seed=self.seed,
            max_steps=steps,
            eval_strategy="no",
            load_best_model_at_end=False,
        )[1]
        retriever = new_or_loaded_retriever(self.retriever_args, self.dataset, self.seed)
        size = steps * args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        pairs = distillation_pairs(self.dataset, self.index, self.relevance, size, self.seed)
        logger.info("retriever learns S from %d pairs, %d steps", len(pairs), steps)
        # All layers, also where `frozen_layers` saves time later: this is done once.
        trainer = retriever_trainer(
            retriever,
            args,
            pairs,
            pairs.head(64),
            lambda _: {},
            without_dropout=self.retriever_args.disable_dropout,
        )
        train_stage(trainer)
        if is_main_process():
            retriever.save(target)
            save_log(trainer, target.with_name("distillation_log.json"))

    def _train_retriever(self, target: Path, number: int) -> None:
        args = self.recipe["retriever"].build(
            output_dir=str(target.with_name("retriever_checkpoints")), seed=self.seed + number
        )[1]
        if number:
            retriever = Retriever.from_pretrained(
                str(self._best_retriever(number)), self.retriever_args.max_pair_tokens
            )
            train = self._round_pairs(number)
        else:
            if self._keeps_start:
                retriever = Retriever.from_pretrained(str(target.with_name(STARTING_RETRIEVER)))
            else:
                retriever = new_or_loaded_retriever(self.retriever_args, self.dataset, self.seed)
            train = self.gold.sample(frac=1, random_state=self.seed, ignore_index=True)
        logger.info("retriever learns from %s", train["source"].value_counts().to_dict())
        dev = self.dataset.pairs("dev")
        trainer = retriever_trainer(
            retriever,
            args,
            train,
            dev,
            dev_metrics(dev, self.dataset.has_ids, self.data_args.relevant_grade),
            lora_rank=self.retriever_args.retriever_lora_rank,
            frozen_layers=self.retriever_args.frozen_layers,
            without_dropout=self.retriever_args.disable_dropout,
            early_stopping_patience=self.retriever_args.early_stopping_patience,
        )
        train_stage(trainer)
        if is_main_process():
            retriever.save(target)
            self._average(target, number)
            save_log(trainer, target.with_name("retriever_log.json"))

    def _average(self, target: Path, number: int) -> None:
        """Move a trained retriever back towards those that it came from, as the settings say."""
        shares = {self.round_folder(0) / STARTING_RETRIEVER: self.loop.lesson_averaging}
        if number:
            shares = {self._best_retriever(number): self.loop.weight_averaging} | shares
        if any(shares.values()):
            learned = Retriever.from_pretrained(str(target))
            for before, share in shares.items():
                if share:
                    learned.average(Retriever.from_pretrained(str(before)), share)
            learned.save(target)

    def _round_pairs(self, number: int) -> pd.DataFrame:
        """Gold pairs and the accepted queries of this round (and of earlier kept rounds)."""
        if self.loop.query_source == "none":
            return self.gold.sample(frac=1, random_state=self.seed + number, ignore_index=True)
        rounds = [number]
        if self.loop.keep_old_queries:
            rounds += self.kept_rounds(number)[1:]  # the queries of round 0 are only looked at
        accepted = pd.concat([self._accepted(past) for past in rounds], ignore_index=True)
        if accepted.empty:
            raise UserError(
                f"round {number}: no generated query was accepted; lower `--reward.min_relevance` "
                f"(now {self.reward_args.min_relevance}) or warm the generator up for longer"
            )
        synthetic = synthetic_pairs(
            accepted,
            self.dataset,
            self.index,
            self.loop,
            self.retriever_args.negative_margin,
            self.relevance,
            self._teacher(number),
            self.seed + number,
        )
        return mix(self.gold, synthetic, self.loop, self.seed + number)

    def _accepted(self, number: int) -> pd.DataFrame:
        """Accepted queries of a round: all, or `synthetic_queries_per_round` of them.

        With `hardest_of` above 1 those with the largest loss of the attacked retriever against the
        label that they will be learned with, else a random choice.
        """
        queries = read_queries(self.round_folder(number) / QUERIES_FILE)
        accepted = queries[queries["accepted"]]
        limit = self.loop.synthetic_queries_per_round
        if limit is None or len(accepted) <= limit:
            return accepted
        if self.loop.hardest_of == 1:
            return accepted.sample(limit, random_state=self.seed + number)
        labels = synthetic_labels(
            accepted["query"].tolist(),
            accepted["document"].tolist(),
            self.loop,
            self._teacher(number),
        )
        losses = excess_loss(accepted["probability"].to_numpy(), labels)
        return accepted.iloc[np.argsort(-losses, kind="stable")[:limit]]

    def _teacher(self, number: int) -> Teacher:
        """Return who labels the queries that attack a round's retriever."""
        if self.loop.teacher == "relevance":
            return self.calibrated
        path = self._best_retriever(number)
        if path not in self._ensembles:
            retriever = self.judge_at(path).freeze()
            dev = self.dataset.pairs("dev")
            judges = (self.relevance.score, self.relevance.weakest_word, retriever.score)
            teacher = fitted_teacher(dev, *judges)
            self._ensembles = {path: teacher}  # the last one alone: each holds a model in memory
        return self._ensembles[path]

    def _evaluate_round(self, target: Path, number: int) -> None:
        if not is_main_process():
            return
        folder = self.round_folder(number)
        retriever = self.judge_at(folder / "retriever")
        audit: dict[str, Any] = {}
        if (folder / QUERIES_FILE).is_file():
            queries = read_queries(folder / QUERIES_FILE)
            audit = self._query_metrics(queries)
            if self.is_looked_at:
                log_odds = score_distinct(
                    retriever.score, queries["query"].tolist(), queries["document"].tolist()
                )
                queries = queries.assign(probability_after=expit(log_odds))
                write_parquet(folder / QUERIES_FILE, queries)
        dev = self.evaluate(retriever.score, "dev")
        if not number:  # later a retriever that has collapsed is rolled back
            refuse_constant_scores(retriever.score, self.dataset.pairs("dev"))
        best = self.best_round(number)
        value = dev[self.loop.dev_metric]
        bar = self.round_metrics(best)["dev"][self.loop.dev_metric] if number else None
        kept = bar is None or value >= bar - self.loop.max_dev_drop
        logger.info(
            "round %d: dev %s %.4f (before %s), %s",
            number,
            self.loop.dev_metric,
            value,
            bar,
            "kept" if kept else "rolled back",
        )
        metrics = {
            "round": number,
            "kept": kept,
            "dev": dev,
            "queries": audit,
        }
        write_json(target, metrics)

    def _query_metrics(self, queries: pd.DataFrame) -> dict[str, Any]:
        """Audit of a round's queries: all, accepted, why not, and how hard they were."""
        accepted = queries[queries["accepted"]]
        summary: dict[str, Any] = {
            "written": len(queries),
            "accepted": len(accepted),
            "acceptance_rate": float(queries["accepted"].mean()),
            "not_accepted": queries.loc[~queries["accepted"], "reason"].value_counts().to_dict(),
            "mean_relevance": float(queries["relevance"].mean()),
        }
        if self.is_looked_at:
            summary["mean_probability"] = float(queries["probability"].mean())
        summary |= query_statistics(queries["query"].tolist(), queries["document"].tolist())
        if len(accepted):
            summary["accepted_mean_probability"] = float(accepted["probability"].mean())
        if self.recipe.is_demo and len(accepted):
            summary["truly_relevant_share"] = self._oracle_share(accepted)
        return summary

    def _oracle_share(self, accepted: pd.DataFrame) -> float:
        """Share of accepted queries that the demo shop's exact oracle calls relevant."""
        grades = demo_oracle(self.data_args).grade_many(
            accepted["query"].tolist(), accepted["product_id"].tolist()
        )
        return float(np.mean([(grade or 0) >= self.data_args.relevant_grade for grade in grades]))

    def judge_at(self, folder: Path) -> Retriever:
        """Load a retriever that scores as it is trained: with `bf16` in bfloat16, as in Trainer."""
        retriever = Retriever.from_pretrained(str(folder)).to_device()
        retriever.bfloat16 = bool(self.recipe["retriever"].values["bf16"])
        return retriever

    def evaluate(self, scorer: Any, split: str, blend_weight: float | None = None) -> Metrics:
        """Evaluate a scorer on a split; on dev the blend's weight is chosen, if there is none."""
        scored = score_candidates(scorer, self.dataset, split, self.index)
        can_choose = split == "dev" and self.dataset.has_ids and scorer is not None
        if can_choose and blend_weight is None:
            blend_weight, _ = scored.choose_blend_weight(self.data_args.relevant_grade)
            if blend_weight is None and self.loop.dev_metric.startswith("blend/"):
                raise UserError(
                    f"`dev_metric` is {self.loop.dev_metric}, but BM25 finds nothing to blend with "
                    f"on {split}; take judged/ndcg@10"
                )
        return scored.evaluate(blend_weight, self.data_args.relevant_grade)

    # --- Beginning and end -----------------------------------------------------------------------

    def _begin(self) -> None:
        """Write config.yaml, or refuse to resume a run of other settings or data."""
        begin_run_folder(self.recipe, self.folder, self.dataset, self.free_settings)
        if (self.folder / "timings.json").is_file():
            self.times = read_json(self.folder / "timings.json")
        sizes = self.dataset.judgements["split"].value_counts().to_dict()
        logger.info("%d products, judgements %s", len(self.dataset.products), sizes)

    def _finish(self) -> dict[str, Any]:
        """Export the best retriever and its round's generator; write metrics.json, once."""
        metrics_file = self.folder / "metrics.json"
        rounds = [self.round_metrics(number) for number in range(self.loop.rounds + 1)]
        is_whole = all(
            (self.folder / name / "config.json").is_file() for name in ("retriever", "generator")
        )
        is_done = (
            is_whole and metrics_file.is_file() and read_json(metrics_file)["rounds"] == rounds
        )
        wait_for_everyone()
        if is_main_process() and not is_done:
            best = self.best_round(self.loop.rounds + 1)
            if not (self.round_folder(best) / "retriever").is_dir():
                raise UserError(
                    f"`{self.round_folder(best) / 'retriever'}` is gone, as `kept_models` says, so "
                    f"the run cannot end with round {best}; give `--rounds` as before"
                )
            metrics_file.unlink(missing_ok=True)  # it vouches for the models beside it
            self._export(best, rounds[best]["dev"].get("blend_weight"))
            write_json(metrics_file, self._summary(best, rounds))
        wait_for_everyone()
        return read_json(metrics_file)

    def _export(self, best: int, blend_weight: float | None) -> None:
        """Write retriever/ and generator/ of the run folder anew; a control's is the warm-up's."""
        for name in ("retriever", "generator"):
            shutil.rmtree(self.folder / name, ignore_errors=True)
        retriever = Retriever.from_pretrained(str(self.round_folder(best) / "retriever"))
        retriever.blend_weight = blend_weight
        retriever.save(self.folder / "retriever")
        trained = best if self.loop.query_source == "adversarial" else 0
        save_merged_generator(self.round_folder(trained) / "generator", self.folder / "generator")

    def _summary(self, best: int, rounds: list[dict[str, Any]]) -> dict[str, Any]:
        summary: dict[str, Any] = {
            "dataset_format": self.data_args.dataset_format,
            "dev_metric": self.loop.dev_metric,
            "best_round": best,
            "rounds": rounds,
            "baselines": {
                "bm25": self.evaluate(None, "dev"),
                "cosine": self.evaluate(self.calibrated.score, "dev"),
            },
            "dev": rounds[best]["dev"],
        }
        if (self.dataset.judgements["split"] == "test").any():
            summary["test"] = self._evaluate_test(best, rounds[best]["dev"].get("blend_weight"))
        return summary

    def _evaluate_test(self, best: int, weight: float | None) -> dict[str, Metrics]:
        """Evaluate on queries that chose nothing: before, after, and the two baselines."""
        before = self.judge_at(self.round_folder(0) / "retriever")
        after = self.judge_at(self.round_folder(best) / "retriever")
        weight_before = self.round_metrics(0)["dev"].get("blend_weight")
        cosine = self.calibrated.score
        cosine_weight = self.evaluate(cosine, "dev").get("blend_weight")
        return {
            "bm25": self.evaluate(None, "test"),
            "cosine": self.evaluate(cosine, "test", cosine_weight),
            "supervised": self.evaluate(before.score, "test", weight_before),
            "adversarial": self.evaluate(after.score, "test", weight),
        }

    def _check_models(self) -> None:
        """Find what a later stage loads before the first is trained; `relevance` stays loaded."""
        check_architecture(self.retriever_args)
        if (name := self.warm_up_args.generator_name_or_path) != "new":
            load_config(resolve_model_name(name))
        logger.info("S is %s", type(self.relevance).__name__)
        _ = self.calibrated  # or says what the judged pairs lack

    def _check_start(self) -> None:
        """Refuse to go back to a retriever that cannot rank, whose head is random."""
        is_there = (self.round_folder(0) / STARTING_RETRIEVER).is_dir()
        if is_there or not self.loop.lesson_averaging or self.loop.distillation_steps:
            return
        name = self.retriever_args.retriever_name_or_path
        if name == "new":
            can_rank = self.retriever_args.new_retriever_steps > 0
        else:
            can_rank = is_classifier(load_config(resolve_model_name(name)))
        if not can_rank:
            raise UserError(
                f"`lesson_averaging` goes back to a retriever that ranks before any judgement, and "
                f"`{name}` does not; set `distillation_steps`, or `lesson_averaging` to 0"
            )

    def _check_dev_metric(self) -> None:
        dev = self.dataset.pairs("dev")
        relevant = dev["label"] >= 0.5
        areas = ("roc_auc", "pr_auc")  # not defined where dev has one class only
        known = [name for name in PAIR_METRICS if name not in areas or relevant.nunique() == 2]
        if self.dataset.has_ids and relevant.any():
            known += [f"{g}/{m}" for g in ("judged", "rerank", "blend") for m in RANKING_METRICS]
        if self.loop.dev_metric not in known:
            raise UserError(
                f"`dev_metric` is {self.loop.dev_metric}; this data has {', '.join(known)}"
            )
        check_training(
            self.recipe["retriever"].build(output_dir="unused")[1],
            dev,
            self.dataset.has_ids,
            self.data_args.relevant_grade,
            self.retriever_args.early_stopping_patience,
        )
        if self.loop.teacher == "ensemble" and relevant.nunique() < 2:
            raise UserError(
                "`teacher: ensemble` is weighed on dev pairs, and these are all of one kind; "
                "use `relevance`, or add judged dev pairs of the other kind"
            )

    # --- Where things are ------------------------------------------------------------------------

    def round_folder(self, number: int) -> Path:
        """Return the folder of a round."""
        return (self.folder if number else self.start) / f"round_{number:02d}"

    def round_metrics(self, number: int) -> dict[str, Any]:
        """Return a complete round's metrics."""
        return read_json(self.round_folder(number) / "metrics.json")

    def _query_source(self, number: int) -> str:
        """Return who writes a round's queries; those of round 0 are only looked at."""
        if number:
            return self.loop.query_source
        return "warm_up" if self.is_looked_at else "none"

    def kept_rounds(self, before: int) -> list[int]:
        """Return the kept rounds below `before`, in their order; round 0 always counts."""
        return [0, *(n for n in range(1, before) if self.round_metrics(n)["kept"])]

    def best_round(self, before: int) -> int:
        """Return the last kept round below `before`."""
        return self.kept_rounds(before)[-1]

    def _attacked_rounds(self, number: int) -> list[int]:
        """Return the rounds whose retrievers round `number` attacks, the best first."""
        return self.kept_rounds(number)[::-1][: self.loop.attacked_retrievers]

    def _retriever_of(self, number: int) -> Path:
        return self.round_folder(number) / "retriever"

    def _best_retriever(self, number: int) -> Path:
        return self._retriever_of(self.best_round(number))

    def _generator_to_attack_with(self, number: int) -> Path:
        start = self.best_round(number) if self.loop.continue_generator else 0
        return self.round_folder(start) / "generator"
