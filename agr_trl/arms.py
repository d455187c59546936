"""The experiment that can say no: the same training with queries from elsewhere, cross-fitted.

An arm is a whole run that differs from the others in one thing, where its synthetic queries come
from. Judged queries of train and dev are dealt into folds; in each fold every arm starts from the
same warm-up and the same supervised retriever, chooses everything inside the other folds, and
scores the fold's own pairs, which it has never seen.

    catalogue_vectors.npy             S of the catalogue
    seed_00/starting_retriever/       R after lessons that need no judgement, if it has any
    seed_00/starting_generator/       G after such a lesson, if it has one
    seed_00/fold_0/shared/round_00/   warm-up and supervised retriever (removed when all arms end)
    seed_00/fold_0/<arm>/             held_out.parquet, result.json, queries.parquet

An arm that has its result.json is skipped, so the same command resumes.
"""

import logging
import multiprocessing
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from accelerate import PartialState
from accelerate.utils import set_seed

from agr_trl.adversarial import QUERIES_FILE, STARTING_RETRIEVER, AdversarialRun
from agr_trl.config import ComparisonArguments, DataArguments, Recipe, RunArguments
from agr_trl.data import RelevanceDataset
from agr_trl.data.splits import fold_queries, split_queries
from agr_trl.errors import UserError
from agr_trl.evaluation import score_candidates
from agr_trl.evidence_parts import fold_folder, seed_folder
from agr_trl.files import read_json, write_json
from agr_trl.relevance import (
    LSA,
    EmbeddingScorer,
    LsaScorer,
    SpellingScorer,
    load_relevance_scorer,
)
from agr_trl.runtime import exclusive, start
from agr_trl.search import BM25Index, Scorer
from agr_trl.stages import begin_run_folder, load_dataset, remove_checkpoints

logger = logging.getLogger(__name__)

COSINE = "cosine"
STARTING_GENERATOR = "starting_generator"
FREE_SETTINGS = (
    *("dataset_path", "seeds", "arms", "ablations", "primary_metric", "workers", "resamples"),
)
CHOOSING = "shuffled by fold"  # how `cross_fit` takes a fold's choosing queries
VECTORS_FILE = "catalogue_vectors.npy"
SHARED = ("index", "calibrated", "gold", "prompts")  # of the data, not of an arm's own settings
# What an ablation may not change, since all arms of a fold have it from one place.
SETTINGS_OF_ALL = (
    "warm_up.",
    "reward.relevance_model",
    "retriever.retriever_name_or_path",
    "retriever.new_retriever_",
    "retriever.hard_negatives",
    "retriever.random_negatives",
    "retriever.negative_margin",
    "distillation_steps",
    "lesson_averaging",
    *(
        field.name
        for part in (RunArguments, DataArguments, ComparisonArguments)
        for field in fields(part)
    ),
)


def arm_changes(arm: str, recipe: Recipe) -> dict[str, dict[str, Any]]:
    """Return the settings in which an arm differs from the recipe: section -> name -> value.

    `adversarial_no_relevance` also drops the gate, which is S by another door. The filter of what
    may teach the retriever is the same in all arms. An ablation changes what its settings say.
    """
    ablations = recipe[""].build()[3].ablation_changes
    attack = {"query_source": "adversarial"}
    if arm in ablations:
        by_section: dict[str, dict[str, Any]] = {"": dict(attack)}
        for key, value in ablations[arm].items():
            section, _, setting = key.rpartition(".")
            by_section.setdefault(section, {})[setting] = value
        return by_section
    loss, relevance, acceptance = recipe["generator"].values["reward_weights"] or [1.0] * 3
    no_choice = {"hardest_of": 1}  # to take the hardest is part of the attack
    changes: dict[str, dict[str, dict[str, Any]]] = {
        "supervised": {"": {"query_source": "none"}},
        "random_crops": {"": {"query_source": "random_crops"} | no_choice},
        "warm_up_generator": {"": {"query_source": "warm_up"} | no_choice},
        "adversarial": {"": attack},
        "adversarial_no_relevance": {
            "": attack,
            "generator": {"reward_weights": [loss, 0.0, acceptance]},
            "reward": {"gate_loss_reward": False},
        },
        "relevance_only": {
            "": attack | no_choice,
            "generator": {"reward_weights": [0.0, relevance, acceptance]},
        },
    }
    return changes[arm]


def cross_fit(
    dataset: RelevanceDataset, folds: int, fold: int, seed: int, choosing_fraction: float
) -> tuple[RelevanceDataset, RelevanceDataset]:
    """Return what a fold trains on (splits train and dev) and what it is scored on (split test).

    Train and dev queries are pooled and dealt into `folds`, variants together; a test split is left
    out of all. Of the other folds' queries a share choose (dev). Without ids the catalogue to
    train on is the documents of the training queries alone, since the others' would tell.
    """
    pooled = dataset.judgements[dataset.judgements["split"] != "test"]
    judged = dataset.queries["query_id"].isin(pooled["query_id"].unique())
    queries = dataset.queries[judged].set_index("query_id")["query"]
    fold_of = fold_queries(queries, folds, seed)
    # A shuffle of its own: that of the folds would let the same queries choose in most of them.
    own_seed = f"{seed} fold {fold}"
    inside = split_queries(queries[fold_of != fold], choosing_fraction, 0.0, own_seed)
    split = pooled["query_id"].map(inside).fillna("test")
    judgements = pooled.assign(split=split).reset_index(drop=True)
    held_out = replace(dataset, judgements=judgements)
    training = judgements[judgements["split"] != "test"].reset_index(drop=True)
    products = dataset.products
    if not dataset.has_ids:
        seen = products["product_id"].isin(training["product_id"].unique())
        products = products[seen].reset_index(drop=True)
    return replace(dataset, judgements=training, products=products), held_out


def run_arms(recipe: Recipe) -> tuple[Path, list[int]]:
    """Run or resume every arm of every fold and seed, `workers` folds at a time.

    Returns the run folder and the seeds.
    """
    if PartialState().num_processes > 1:
        raise UserError("a comparison is one process; give it `--workers N` instead of a launcher")
    run_args, data_args, _, comparison = recipe[""].build()
    folder = Path(run_args.output_dir)
    dataset = load_dataset(data_args)
    seeds = list(range(run_args.seed, run_args.seed + comparison.seeds))
    jobs = [(seed, fold) for seed in seeds for fold in range(comparison.folds)]
    _check_primary_metric(comparison.primary_metric, dataset)
    if comparison.shared_warm_up_steps and not dataset.has_ids:
        raise UserError(
            "`shared_warm_up_steps` reads the whole catalogue, and pairs have the documents of "
            "training queries alone to write for; leave it at 0"
        )
    run = AdversarialRun(recipe, dataset)
    _check_arms(recipe, dataset, run_args.seed, comparison)
    with exclusive(folder):
        begin_run_folder(recipe, folder, dataset, FREE_SETTINGS, choosing=CHOOSING)
        _refuse_other_ablations(folder, comparison, jobs)
        missing = [job for job in jobs if _missing_arms(folder, comparison, *job)]
        if missing and read_json(folder / "run.json").get("choosing") != CHOOSING:
            raise UserError(
                f"`{folder}` was begun by a version that chose with other queries of each fold; "
                "end it with that version (see run.json), or give another --output_dir"
            )
        logger.info("%d of %d folds are missing", len(missing), len(jobs))
        _embed_catalogue(run, folder)
        behind = dict.fromkeys(seed for seed, _ in missing)
        to_teach = [seed for seed in behind if _missing_lessons(recipe, seed)]
        if comparison.workers == 1:
            for seed in to_teach:
                teach_start(recipe, seed)
            for seed, fold in missing:
                run_fold(recipe, seed, fold)
        else:
            _run_in_workers(recipe, to_teach, missing, comparison.workers)
    return folder, seeds


def _check_arms(
    recipe: Recipe, dataset: RelevanceDataset, seed: int, comparison: ComparisonArguments
) -> None:
    """Raise `UserError` for what an arm or ablation could not do, or not do fairly.

    Building an arm's run, before any work, finds what else is wrong with its settings. Without ids
    a fold has a catalogue of its own, so it is built for the folds of a seed.
    """
    for name, changes in comparison.ablation_changes.items():
        if shared := [setting for setting in changes if setting.startswith(SETTINGS_OF_ALL)]:
            raise UserError(
                f"`ablations` changes `{shared[0]}` in `{name}`, which all arms share; "
                "run another comparison with it"
            )
    catalogues = [dataset]
    if not dataset.has_ids:
        folds, share = comparison.folds, comparison.choosing_fraction
        catalogues = [cross_fit(dataset, folds, fold, seed, share)[0] for fold in range(folds)]
    for arm in (*comparison.arms, *comparison.ablation_changes):
        changed = recipe.replaced(arm_changes(arm, recipe))
        loop = changed[""].values
        if loop["query_source"] != "none" and not loop["synthetic_queries_per_round"]:
            raise UserError(
                f"`synthetic_queries_per_round` of {arm} is not set, and an arm of which more "
                "queries are accepted would learn from more; set it"
            )
        if changed["retriever"].values["max_steps"] < 1:
            raise UserError(
                f"`retriever.max_steps` of {arm} is not set, and by epochs an arm with more pairs "
                "takes more steps; set it"
            )
        for catalogue in catalogues:
            AdversarialRun(changed, catalogue)


def _check_primary_metric(name: str, dataset: RelevanceDataset) -> None:
    """Raise `UserError` where the judgements cannot give the metric that is to be tested."""
    if name != "pr_auc" and not dataset.has_ids:
        raise UserError(f"`primary_metric` is {name}, but pairs have no rankings; take pr_auc")
    judged = dataset.judgements[dataset.judgements["split"] != "test"]
    remedy = ", or take rerank/ndcg@10" if dataset.has_ids else ""
    if name == "pr_auc" and (judged["label"] >= 0.5).nunique() < 2:
        raise UserError(
            "`primary_metric` is pr_auc, but all judged pairs have one label; judge some of the "
            f"other kind{remedy}"
        )
    if name == "judged/ndcg@10" and (judged.groupby("query_id")["grade"].nunique() < 2).all():
        raise UserError(
            "`primary_metric` is judged/ndcg@10, but no query has judgements of two grades, so "
            f"that any order is as good; judge some products of another grade{remedy}"
        )


def _run_in_workers(
    recipe: Recipe, to_teach: list[int], jobs: list[tuple[int, int]], workers: int
) -> None:
    """Run lessons and folds in processes of their own, each with its share of the cores.

    A fold waits for the lesson of its seed alone. An interrupt ends all of them; what an error
    leaves unfinished ends first. Raises `UserError` for a worker that the system has ended.
    """
    threads = max(1, (os.cpu_count() or 1) // workers)
    context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
    with ProcessPoolExecutor(workers, context, _start_worker, (threads,)) as pool:
        try:
            lessons = {pool.submit(teach_start, recipe, seed): seed for seed in to_teach}
            taught = [job for job in jobs if job[0] not in to_teach]
            folds = {pool.submit(run_fold, recipe, *job): job for job in taught}
            for lesson in _as_completed(pool, lessons):
                ready = [job for job in jobs if job[0] == lessons[lesson]]
                folds |= {pool.submit(run_fold, recipe, *job): job for job in ready}
            for number, fold in enumerate(_as_completed(pool, folds), 1):
                logger.info("seed %d fold %d is done, %d of %d", *folds[fold], number, len(jobs))
        except BrokenProcessPool as error:
            raise UserError(
                "the system has ended a worker, perhaps for want of memory; give fewer "
                "`--workers`, the same command continues"
            ) from error
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            for worker in multiprocessing.active_children():
                worker.terminate()
            raise


def _as_completed(
    pool: ProcessPoolExecutor, futures: Iterable[Future[None]]
) -> Iterator[Future[None]]:
    """Yield futures as they end; the first error cancels what has not begun, and is raised."""
    for future in as_completed(futures):
        if future.exception():  # told now, not when all others are done
            pool.shutdown(wait=False, cancel_futures=True)
        future.result()
        yield future


def _start_worker(threads: int) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    start(0)
    logging.getLogger("agr_trl").setLevel(logging.WARNING)


def _end_with_parent() -> None:
    """End this worker when the job is killed, whose lock is then free for the next job."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _embed_catalogue(run: AdversarialRun, folder: Path) -> None:
    """Write S of the catalogue, which all folds read, unless it is there."""
    vectors = folder / VECTORS_FILE
    if not vectors.is_file():
        partial = vectors.with_suffix(".partial.npy")
        np.save(partial, run.relevance.embed(run.dataset.documents))
        partial.replace(vectors)


def _missing_lessons(recipe: Recipe, seed: int) -> list[str]:
    """Return which models have lessons that need no judgement, and have not had them for a seed."""
    run_args, _, loop, comparison = recipe[""].build()
    is_new = recipe["retriever"].values["retriever_name_or_path"] == "new"
    has_lesson = {
        STARTING_RETRIEVER: bool(is_new or loop.distillation_steps),
        STARTING_GENERATOR: bool(comparison.shared_warm_up_steps),
    }
    place = seed_folder(Path(run_args.output_dir), seed)
    return [model for model in has_lesson if has_lesson[model] and not (place / model).is_dir()]


def teach_start(recipe: Recipe, seed: int) -> None:
    """Let R and G learn, once for all folds of a seed, what they learn from the catalogue alone.

    For R that is the first lesson of a 'new' retriever and the distillation of S, for G the
    pseudo-queries. Each seed has its own: two small retrievers that were built from nothing can end
    .1 nDCG apart, before any judgement and after.
    """
    run = AdversarialRun(recipe.replaced({"": {"seed": seed}}))
    for model in _missing_lessons(recipe, seed):
        start = seed_folder(run.folder, seed) / model
        partial = start.with_suffix(".partial")
        set_seed(seed)
        if model == STARTING_GENERATOR:
            run.warm_up_on_titles(partial, recipe[""].build()[3].shared_warm_up_steps)
        else:
            if run.loop.distillation_steps:
                run.relevance.remember(run.dataset.documents, np.load(run.folder / VECTORS_FILE))
            run.start_retriever(partial, 0)
        partial.replace(start)
        remove_checkpoints(start.parent)


def _from_start(recipe: Recipe, folder: Path, seed: int) -> Recipe:
    """Return the settings of a seed's folds, which take R and G from where they were taught."""
    retriever, generator = (
        seed_folder(folder, seed) / model for model in (STARTING_RETRIEVER, STARTING_GENERATOR)
    )
    changes: dict[str, dict[str, Any]] = {}
    if retriever.is_dir():
        changes[""] = {"distillation_steps": 0}
        changes["retriever"] = {"retriever_name_or_path": str(retriever)}
    if generator.is_dir():
        changes["warm_up"] = {"generator_name_or_path": str(generator)}
    return recipe.replaced(changes)


def _missing_arms(folder: Path, args: ComparisonArguments, seed: int, fold: int) -> list[str]:
    place = fold_folder(folder, seed, fold)
    arms = [COSINE, *args.arms, *args.ablation_changes]
    return [arm for arm in arms if not (place / arm / "result.json").is_file()]


def _refuse_other_ablations(
    folder: Path, args: ComparisonArguments, jobs: list[tuple[int, int]]
) -> None:
    """Raise `UserError` where an ablation was run with other changes than it now has."""
    for name, changes in args.ablation_changes.items():
        for job in jobs:
            file = fold_folder(folder, *job) / name / "result.json"
            if file.is_file() and read_json(file).get("changes", changes) != changes:
                raise UserError(
                    f"`{file.parent}` was run as another ablation; give `{name}` another name"
                )


def run_fold(recipe: Recipe, seed: int, fold: int) -> None:
    """Run the arms that a fold still lacks."""
    FoldRun(recipe, seed, fold).run()


class FoldRun:
    """One fold of one seed: what its arms share, and the arms."""

    def __init__(self, recipe: Recipe, seed: int, fold: int) -> None:
        run_args, self.data_args, _, self.comparison = recipe[""].build()
        self.run_folder = Path(run_args.output_dir)
        self.recipe, self.seed = _from_start(recipe, self.run_folder, seed), seed
        self.folder = fold_folder(self.run_folder, seed, fold)
        self.missing = _missing_arms(self.run_folder, self.comparison, seed, fold)
        dataset = load_dataset(self.data_args)
        folds, share = self.comparison.folds, self.comparison.choosing_fraction
        self.training, self.held_out = cross_fit(dataset, folds, fold, seed, share)
        self.index = BM25Index(self.held_out.documents)
        self.relevance = self._load_relevance()

    def run(self) -> None:
        """Run the missing arms, then remove the models that they started from."""
        began = time.monotonic()
        shared = self._arm_run("shared", {})
        if self.held_out.has_ids:  # trained on and scored on the same catalogue
            shared.index = self.index
        shared.run_rounds(0)
        if COSINE in self.missing:
            cosine = shared.calibrated.score
            weight = shared.evaluate(cosine, "dev").get("blend_weight")
            self._write_result(COSINE, cosine, weight, [], began)
        before = shared.judge_at(shared.round_folder(0) / "retriever")
        at_start = self._score(before.score)["retriever"].to_numpy()
        for arm in self.missing:
            if arm != COSINE:
                self._run_arm(arm, shared, at_start)
        shutil.rmtree(self.folder / "shared")

    def _run_arm(self, arm: str, shared: AdversarialRun, at_start: np.ndarray) -> None:
        began = time.monotonic()
        run = self._arm_run(arm, arm_changes(arm, self.recipe), start=shared.folder)
        for name in SHARED:
            setattr(run, name, getattr(shared, name))
        last = run.loop.rounds
        run.run_rounds(last)
        best = run.best_round(last + 1)
        retriever = run.judge_at(run.round_folder(best) / "retriever")
        files = [run.round_folder(number) / QUERIES_FILE for number in range(1, last + 1)]
        written = [pd.read_parquet(file) for file in files if file.is_file()]
        if written:
            self._judge_again(pd.concat(written, ignore_index=True)).to_parquet(
                run.folder / QUERIES_FILE, index=False
            )
        rounds = [run.round_metrics(number) for number in range(last + 1)]
        weight = rounds[best]["dev"].get("blend_weight")
        self._write_result(arm, retriever.score, weight, rounds, began, at_start)
        for folder in run.folder.glob("round_*"):
            shutil.rmtree(folder)

    def _arm_run(
        self, name: str, changes: dict[str, dict[str, Any]], start: Path | None = None
    ) -> AdversarialRun:
        own = {"output_dir": str(self.folder / name), "seed": self.seed}
        changed = self.recipe.replaced(changes | {"": changes.get("", {}) | own})
        run = AdversarialRun(changed, self.training, start)
        run.relevance = self.relevance
        run.free_settings = FREE_SETTINGS  # an unfinished fold goes on when seeds are added
        run.is_looked_at = False  # nobody opens an arm's folder; a tenth of its time
        return run

    def _load_relevance(self) -> EmbeddingScorer:
        documents = self.held_out.documents
        name = self.recipe["reward"].values["relevance_model"]
        # LSA is a model of its catalogue: the same one in all folds, so that the vectors fit.
        scorer = load_relevance_scorer(name, documents)
        scorer.remember(documents, np.load(self.run_folder / VECTORS_FILE))
        return scorer

    def _score(self, scorer: Scorer) -> pd.DataFrame:
        return score_candidates(scorer, self.held_out, "test", self.index).pairs

    @cached_property
    def _second_judge(self) -> LsaScorer | SpellingScorer:
        """What neither trains nor filters anything, as S does and BM25 in the round trip."""
        is_s = self.recipe["reward"].values["relevance_model"] == LSA
        return (SpellingScorer if is_s else LsaScorer)(self.held_out.documents)

    def _judge_again(self, queries: pd.DataFrame) -> pd.DataFrame:
        texts, documents = queries["query"].tolist(), queries["document"].tolist()
        return queries.assign(second_judge=self._second_judge.score(texts, documents))

    def _write_result(
        self,
        arm: str,
        scorer: Callable[[list[str], list[str]], np.ndarray],
        blend_weight: float | None,
        rounds: list[dict[str, Any]],
        began: float,
        at_start: np.ndarray | None = None,
    ) -> None:
        """Write an arm's scores of the held-out pairs, then the file that says it is done."""
        folder = self.folder / arm
        folder.mkdir(parents=True, exist_ok=True)
        scored = self._score(scorer)
        if at_start is not None:
            scored = scored.assign(before=at_start)
        scored.to_parquet(folder / "held_out.parquet", index=False)
        result = {
            "blend_weight": blend_weight,
            "has_ids": self.held_out.has_ids,
            "relevant_grade": self.data_args.relevant_grade,
            "rounds": rounds,
            "minutes": (time.monotonic() - began) / 60,
            "changes": self.comparison.ablation_changes.get(arm),
        }
        write_json(folder / "result.json", result)
