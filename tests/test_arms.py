"""Control arms: folds that do not leak, arms that differ in one thing, and resuming."""

import json
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool

import numpy as np
import pandas as pd
import pytest
from accelerate import PartialState
from toy_runs import build_run, load_recipe, run_main, write_beir, write_loop_config, write_pairs

from agr_trl import arms
from agr_trl.adversarial import AdversarialRun
from agr_trl.arms import (
    FoldRun,
    _as_completed,
    _missing_lessons,
    _run_in_workers,
    arm_changes,
    cross_fit,
    run_arms,
    teach_start,
)
from agr_trl.config import ARMS, REFERENCES, parse_recipe
from agr_trl.data import load_relevance_dataset
from agr_trl.data.splits import fold_queries, query_groups
from agr_trl.errors import UserError
from agr_trl.evidence_parts import fold_folder
from agr_trl.small_models import build_small_t5


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    return write_beir(tmp_path_factory.mktemp("shop") / "beir")


def comparison(config, folder, *words):
    sections = load_recipe("compare_arms").SECTIONS
    arguments = ["--config", str(config), "--output_dir", str(folder), "--folds", "2"]
    arguments += ["--seeds", "1", "--synthetic_queries_per_round", "50", *words]
    return parse_recipe(sections, "recipes/compare_arms.py", arguments)


@pytest.fixture(scope="module")
def finished(shop):
    """All six arms and an ablation over two folds, by the recipe."""
    config = write_loop_config(
        shop.parent / "compare.yaml", shop, primary_metric="judged/ndcg@10", resamples=100,
        distillation_steps=2, shared_warm_up_steps=2,
        ablations={"uncertainty": {"reward.loss_reward": "uncertainty"}}, max_dev_drop=1,
    )  # fmt: skip
    folder = shop.parent / "compared"
    words = ["--folds", "2", "--seeds", "1", "--synthetic_queries_per_round", "50"]
    run_main("compare_arms", "--config", config, "--output_dir", folder, *words)
    return config, folder


def test_folds_share_out_all_queries_with_variants_together():
    queries = pd.Series(["red chair", "red chairs", "blue lamp", "table", "sofa", "desk"])
    folds = fold_queries(queries, 3, seed=0)
    assert folds[0] == folds[1]
    assert set(folds) <= {0, 1, 2}
    assert folds.equals(fold_queries(queries, 3, seed=0))
    assert not folds.equals(fold_queries(queries, 3, seed=1))
    with pytest.raises(UserError, match="`folds` is 7"):
        fold_queries(queries, 7, seed=0)


@pytest.mark.parametrize("write", [write_beir, write_pairs])
def test_every_query_is_held_out_once_and_never_trained_on(write, tmp_path):
    source = write(tmp_path / "data")
    dataset = load_relevance_dataset("beir" if write is write_beir else "pairs", source)
    pooled = dataset.judgements[dataset.judgements["split"] != "test"]
    texts = dataset.queries.set_index("query_id")["query"]
    scored = []
    for fold in range(2):
        training, held_out = cross_fit(dataset, 2, fold, seed=0, choosing_fraction=0.25)
        test = held_out.pairs("test")
        assert set(training.judgements["split"]) == {"train", "dev"}
        inside = texts[training.judgements["query_id"].unique()]
        assert not set(query_groups(list(inside))) & set(query_groups(list(test["query"].unique())))
        scored += list(zip(test["query_id"], test["product_id"], strict=True))
    assert sorted(scored) == sorted(zip(pooled["query_id"], pooled["product_id"], strict=True))


def two_of_each(names):
    """Return pairs of a query with a relevant document and another, which no other query has."""
    rows = [(f"query {n}", f"document {n} {label}", label) for n in names for label in (0, 1)]
    return pd.DataFrame(rows, columns=["query", "document", "label"])


def test_without_ids_the_catalogue_is_the_training_documents(tmp_path):
    folder = tmp_path / "pairs"
    folder.mkdir()
    two_of_each("abcdef").to_csv(folder / "train.csv", index=False)
    dataset = load_relevance_dataset("pairs", folder)
    training, held_out = cross_fit(dataset, 3, 0, seed=0, choosing_fraction=0.25)
    assert not set(training.documents) & set(held_out.pairs("test")["document"])
    assert len(training.documents) == 8  # four of six queries, two documents each


def test_each_fold_chooses_with_queries_of_its_own(tmp_path):
    # Were they shuffled as the folds are, most folds would choose with the queries of one of them,
    # and these would teach in none.
    two_of_each(range(20)).to_csv(tmp_path / "pairs.csv", index=False)
    dataset = load_relevance_dataset("pairs", tmp_path / "pairs.csv", "train")
    inside = [cross_fit(dataset, 5, fold, 0, 0.25)[0].judgements for fold in range(5)]
    choosing = [frozenset(own[own["split"] == "dev"]["query_id"]) for own in inside]
    assert [len(own) for own in choosing] == [4] * 5
    assert len(set(choosing)) == 5
    assert len(frozenset.union(*choosing)) > 10
    teaching = set().union(*(own[own["split"] == "train"]["query_id"] for own in inside))
    assert len(teaching) == 20


def test_arms_differ_in_where_queries_come_from_and_in_nothing_else(shop, tmp_path):
    config = write_loop_config(tmp_path / "compare.yaml", shop)
    recipe = comparison(config, tmp_path / "run", "--generator.reward_weights", "2", "1", "0")
    changes = {arm: arm_changes(arm, recipe) for arm in ARMS}
    attack = {"query_source": "adversarial"}
    assert changes == {
        "supervised": {"": {"query_source": "none"}},
        "random_crops": {"": {"query_source": "random_crops", "hardest_of": 1}},
        "warm_up_generator": {"": {"query_source": "warm_up", "hardest_of": 1}},
        "adversarial": {"": attack},
        "adversarial_no_relevance": {
            "": attack,
            "generator": {"reward_weights": [2, 0, 0]},
            "reward": {"gate_loss_reward": False},
        },
        "relevance_only": {
            "": attack | {"hardest_of": 1},
            "generator": {"reward_weights": [0, 1, 0]},
        },
    }
    bare = recipe.replaced({"generator": {"reward_weights": None}})  # TRL then sums all
    for arm, weights in (("adversarial_no_relevance", [1, 0, 1]), ("relevance_only", [0, 1, 1])):
        assert arm_changes(arm, bare)["generator"]["reward_weights"] == weights


def test_an_arms_rewards_and_filter_follow_its_own_settings(finished, monkeypatch):
    # The filter of all arms was once the shared one, whose settings the rewards read.
    config, folder = finished
    ablations = '{"strict": {"reward.loss_reward": "uncertainty", "reward.min_relevance": 0.9}}'
    recipe = comparison(config, folder, f"--ablations={ablations}")
    seen = {}

    def look(run, last):
        seen[run.folder.name] = run
        raise KeyboardInterrupt

    fold = FoldRun(recipe, 0, 0)
    shared = fold._arm_run("shared", {})
    monkeypatch.setattr(AdversarialRun, "run_rounds", look)
    for arm in ("adversarial", "adversarial_no_relevance", "strict"):
        with pytest.raises(KeyboardInterrupt):
            fold._run_arm(arm, shared, np.zeros(0))
    rules = {arm: run.acceptance.settings for arm, run in seen.items()}
    assert rules["adversarial"].gate_loss_reward
    assert not rules["adversarial_no_relevance"].gate_loss_reward
    assert (rules["strict"].loss_reward, rules["strict"].min_relevance) == ("uncertainty", 0.9)
    assert len({run.index for run in seen.values()}) == 1


def test_every_arm_scores_every_held_out_pair(finished):
    _, folder = finished
    frames = {}
    for arm in ("cosine", *ARMS):
        parts = [
            pd.read_parquet(fold_folder(folder, 0, fold) / arm / "held_out.parquet")
            for fold in (0, 1)
        ]
        frames[arm] = pd.concat(parts)
        assert np.isfinite(frames[arm]["retriever"]).all()
    keys = ["query_id", "product_id", "judged", "candidate"]
    for frame in frames.values():
        assert frame[keys].equals(frames["supervised"][keys])
    starts = [frames[arm]["before"] for arm in ARMS]
    assert all(start.equals(starts[0]) for start in starts)  # one supervised retriever for all
    assert not frames["adversarial"]["retriever"].equals(frames["supervised"]["retriever"])
    assert frames["supervised"].loc[frames["supervised"]["judged"], "query_id"].nunique() == 8


def test_an_arm_leaves_its_result_and_queries_but_no_models(finished):
    _, folder = finished
    for arm in ARMS:
        place = fold_folder(folder, 0, 0) / arm
        result = json.loads((place / "result.json").read_text())
        assert [entry["round"] for entry in result["rounds"]] == [0, 1]
        assert result["rounds"][0]["queries"] == {}  # none were written to be looked at alone
        assert result["has_ids"] is True
        assert (place / "queries.parquet").is_file() == (arm != "supervised")
        assert not list(place.glob("round_*"))
        if arm != "supervised":
            queries = pd.read_parquet(place / "queries.parquet")
            assert queries["second_judge"].between(0, 1).all()
            assert set(queries["round"]) == {1}
            # R was asked about accepted queries alone.
            assert queries["probability"].notna().equals(queries["accepted"])
    assert not (fold_folder(folder, 0, 0) / "shared").exists()


def test_lessons_without_judgements_are_given_once_for_the_folds_of_a_seed(finished, monkeypatch):
    config, folder = finished
    starts = [folder / "seed_00" / f"starting_{model}" for model in ("retriever", "generator")]
    assert all((start / "model.safetensors").is_file() for start in starts)
    assert not list(folder.glob("**/fold_*/**/distil*"))
    recipe = comparison(config, folder)
    taught = []

    def teach(run, target, given):
        taught.append((run.seed, target.parent.name, given))
        target.mkdir(parents=True)

    monkeypatch.setattr(AdversarialRun, "distil_relevance", teach)
    monkeypatch.setattr(AdversarialRun, "warm_up_on_titles", teach)
    both = ["starting_retriever", "starting_generator"]
    assert [_missing_lessons(recipe, seed) for seed in (0, 1)] == [[], both]
    teach_start(recipe, 1)
    assert taught == [(1, "seed_01", 0), (1, "seed_01", 2)]
    assert not _missing_lessons(recipe, 1)
    shutil.rmtree(folder / "seed_01")
    own = FoldRun(recipe, 0, 0).recipe
    assert own[""].values["distillation_steps"] == 0
    assert own["retriever"].values["retriever_name_or_path"] == str(starts[0])
    assert own["warm_up"].values["generator_name_or_path"] == str(starts[1])


def test_a_seeds_generator_learns_titles_and_neither_queries_nor_judgements(
    shop, tmp_path, monkeypatch
):
    run = build_run(write_loop_config(tmp_path / "loop.yaml", shop), tmp_path / "run")
    seen = {}

    def look(model, tokenizer, args, settings, train, dev):
        seen.update(steps=args.max_steps, train=train, dev=dev)
        raise KeyboardInterrupt

    def build(texts, **sizes):
        seen.update(texts=texts)
        return build_small_t5(texts, **sizes)

    monkeypatch.setattr("agr_trl.adversarial.warm_up_trainer", look)
    monkeypatch.setattr("agr_trl.generator.build_small_t5", build)
    with pytest.raises(KeyboardInterrupt):
        run.warm_up_on_titles(tmp_path / "generator", 7)
    assert (seen["steps"], seen["dev"], set(seen["train"]["kind"])) == (7, None, {"pseudo"})
    assert seen["texts"] == run.dataset.prompts()["prompt"].tolist()


def test_a_lesson_from_all_titles_is_refused_for_pairs(tmp_path):
    source = write_pairs(tmp_path / "pairs")
    config = write_loop_config(
        tmp_path / "pairs.yaml", source, "pairs", dev_metric="pr_auc", shared_warm_up_steps=2
    )
    with pytest.raises(UserError, match="`shared_warm_up_steps` reads the whole catalogue"):
        run_arms(comparison(config, tmp_path / "run"))


def test_the_recipe_writes_evidence_and_a_report(finished):
    _, folder = finished
    evidence = json.loads((folder / "evidence.json").read_text())
    assert list(evidence["arms"]) == [*REFERENCES, *ARMS, "uncertainty"]
    assert set(evidence["tests"]) == set(ARMS) - {"adversarial"}
    ablation = evidence["ablations"]["uncertainty"]
    assert ablation["changes"] == {"reward.loss_reward": "uncertainty"}
    assert ablation["p"] is not None and "p_holm" not in ablation
    assert (evidence["queries"], evidence["seeds"], evidence["folds"]) == (8, [0], 2)
    assert evidence["pairs"] == 8 * 20
    assert evidence["arms"]["bm25"]["judged/ndcg@10"]["mean"] > 0
    assert "<html" in (folder / "report.html").read_text()


def test_random_crops_are_words_of_their_titles(finished):
    _, folder = finished
    queries = pd.read_parquet(fold_folder(folder, 0, 1) / "random_crops" / "queries.parquet")
    for title, query in zip(queries["title"], queries["query"], strict=True):
        assert f" {query} " in f" {title} "


def test_a_lost_arm_is_run_again_to_the_same_scores(finished):
    config, folder = finished
    place = fold_folder(folder, 0, 1) / "adversarial"
    other = fold_folder(folder, 0, 1) / "supervised" / "result.json"
    before, untouched = pd.read_parquet(place / "held_out.parquet"), other.stat().st_mtime_ns
    (place / "result.json").unlink()
    run_arms(comparison(config, folder))
    pd.testing.assert_frame_equal(pd.read_parquet(place / "held_out.parquet"), before)
    assert other.stat().st_mtime_ns == untouched


def test_an_arm_is_scored_by_the_best_of_its_rounds(finished, tmp_path, monkeypatch):
    config, folder = finished
    copied = shutil.copytree(folder, tmp_path / "copy")
    place = fold_folder(copied, 0, 1) / "random_crops"
    before = pd.read_parquet(place / "held_out.parquet")
    assert not before["retriever"].equals(before["before"])  # of round 1
    shutil.rmtree(place)
    monkeypatch.setattr(AdversarialRun, "best_round", lambda self, before: 0)
    run_arms(comparison(config, copied))
    after = pd.read_parquet(place / "held_out.parquet")
    assert after["retriever"].equals(after["before"])


def test_a_seed_of_a_comparison_seeds_its_arms(finished):
    config, folder = finished
    fold = FoldRun(comparison(config, folder), 0, 0)
    fold.seed = 5  # as if of another; its lessons are not there
    assert fold._arm_run("random_crops", {}).seed == 5


def test_the_second_judge_is_never_s(finished):
    config, folder = finished
    fold = FoldRun(comparison(config, folder), 0, 0)
    document = "red oak chair"
    queries = pd.DataFrame({"query": [document, "zzz"], "document": document})
    # S is LSA and BM25 may be asked in the round trip: letters judge. "zzz" shares none.
    assert fold._judge_again(queries)["second_judge"].tolist() == pytest.approx([1, 0])
    # Another S: LSA judges, which gives a text that it does not know the cosine 0.
    fold = FoldRun(comparison(config, folder), 0, 0)
    fold.recipe = fold.recipe.replaced({"reward": {"relevance_model": "another"}})
    assert fold._judge_again(queries)["second_judge"].tolist() == pytest.approx([1, 0.5])


def test_an_unfinished_fold_goes_on_when_arms_and_seeds_are_added(finished, tmp_path, monkeypatch):
    config, _ = finished

    def interrupt(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(FoldRun, "_run_arm", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run_arms(comparison(config, tmp_path, "--arms", "adversarial", "--ablations", "{}"))
    assert (fold_folder(tmp_path, 0, 0) / "shared" / "round_00" / "metrics.json").is_file()
    more = ("--arms", "adversarial", "supervised", "--ablations", "{}")
    folder, seeds = run_arms(comparison(config, tmp_path, *more, "--seeds", "2"))
    for seed in seeds:
        place = fold_folder(folder, seed, 1)
        assert {path.name for path in place.iterdir()} == {"cosine", "adversarial", "supervised"}


def test_a_comparison_is_not_resumed_with_other_settings(finished, tmp_path):
    config, folder = finished
    ablations = '{"uncertainty": {"reward.loss_reward": "margin_band"}}'
    with pytest.raises(UserError, match=r"uncertainty` was run as another ablation; give"):
        run_arms(comparison(config, folder, f"--ablations={ablations}"))
    with pytest.raises(UserError, match=r"retriever\.learning_rate"):
        run_arms(comparison(config, folder, "--retriever.learning_rate", "0.5"))


def test_a_comparison_that_chose_otherwise_is_ended_by_its_own_version(finished, tmp_path):
    config, folder = finished
    copied = shutil.copytree(folder, tmp_path / "copy")
    state = json.loads((copied / "run.json").read_text())
    assert state.pop("choosing") == "shuffled by fold"
    (copied / "run.json").write_text(json.dumps(state))
    run_arms(comparison(config, copied))  # nothing is missing
    with pytest.raises(UserError, match="was begun by a version that chose with other queries"):
        run_arms(comparison(config, copied, "--seeds", "2"))


def test_the_catalogues_of_folds_are_held_against_a_batch(tmp_path):
    pairs, documents = tmp_path / "pairs", 24  # two of each query, so half of them in a fold
    pairs.mkdir()
    for split, numbers in (("train", range(8)), ("dev", range(8, 12))):
        two_of_each(numbers).to_csv(pairs / f"{split}.csv", index=False)
    config = write_loop_config(tmp_path / "pairs.yaml", pairs, "pairs", dev_metric="pr_auc")
    size = f"--generator.per_device_train_batch_size={2 * documents}"  # enough for all together
    words = (size, "--generator.num_generations=2", f"--prompts_per_round={documents}")
    build_run(config, tmp_path / "run", *words)
    with pytest.raises(UserError, match=f"asks for {documents} prompts, and there are "):
        run_arms(comparison(config, tmp_path / "run", *words, "--primary_metric=pr_auc"))
    assert not (tmp_path / "run").exists()


def test_a_comparison_is_one_process(shop, tmp_path, monkeypatch):
    config = write_loop_config(tmp_path / "compare.yaml", shop)
    PartialState()
    monkeypatch.setitem(PartialState._shared_state, "num_processes", 2)
    with pytest.raises(UserError, match="a comparison is one process; give it `--workers N`"):
        run_arms(comparison(config, tmp_path / "run"))


def test_unknown_arms_and_metrics_are_refused(shop, tmp_path):
    config = write_loop_config(tmp_path / "compare.yaml", shop)
    with pytest.raises(UserError, match="`arms` names `irgan`"):
        run_arms(comparison(config, tmp_path / "run", "--arms", "irgan"))
    with pytest.raises(UserError, match="`arms` is supervised; it must have adversarial"):
        run_arms(comparison(config, tmp_path / "run", "--arms", "supervised"))
    with pytest.raises(UserError, match="`primary_metric` is f1"):
        run_arms(comparison(config, tmp_path / "run", "--primary_metric", "f1"))
    for ablations, message in (
        ('{"a": {"reward.cap": 1}}', "unknown setting `--cap`"),
        ('{"a": {"reward.loss_reward": "hinge"}}', "invalid choice: 'hinge'"),
        ('{"a": {"rewards.loss_reward": "bce"}}', "`rewards` is no section"),
        ('{"supervised": {"reward.loss_reward": "bce"}}', "give a new name"),
        ('{"shared": {"reward.loss_reward": "bce"}}', "give a new name"),
        ('{"a": {"reward.relevance_model": "lsa"}}', "which all arms share"),
        ('{"a": {"warm_up.max_steps": 1}}', "which all arms share"),
        ('{"a": {"seed": 1}}', "which all arms share"),
        ('{"a": {"max_draws": 0}}', "`max_draws` is 0"),
        ('{"a": {"dev_metric": "judged/f1"}}', "`dev_metric` is judged/f1"),
        ('{"../../x": {"reward.loss_reward": "bce"}}', "give a new name of letters"),
        ('["a"]', "must map names"),
        ("{a}", "is no mapping"),
    ):
        with pytest.raises(UserError, match=message):
            run_arms(comparison(config, tmp_path / "run", f"--ablations={ablations}"))
    for words, message in (
        (("--generator.reward_weights", "2", "1"), "reward"),
        (("--retriever.max_steps", "-1"), "`retriever.max_steps` of supervised is not set"),
        (('--ablations={"a": {"retriever.max_steps": -1}}',), "`retriever.max_steps` of a is not"),
        (("--lesson_averaging=0.5", "--retriever.new_retriever_steps=0"), "`new` does not"),
    ):
        with pytest.raises(UserError, match=message):
            run_arms(comparison(config, tmp_path / "run", *words))
    unlimited = comparison(
        config, tmp_path / "run", "--arms", "supervised", "adversarial"
    ).replaced({"": {"synthetic_queries_per_round": None}})
    with pytest.raises(UserError, match="`synthetic_queries_per_round` of adversarial is not set"):
        run_arms(unlimited)
    assert not (tmp_path / "run").exists()


def test_a_metric_that_the_judgements_cannot_give_is_refused_before_any_work(tmp_path):
    pairs = write_pairs(tmp_path / "pairs")
    config = write_loop_config(tmp_path / "pairs.yaml", pairs, dataset_format="pairs")
    words = ("--primary_metric", "judged/ndcg@10", "--dev_metric", "pr_auc")
    with pytest.raises(UserError, match="is judged/ndcg@10, but pairs have no rankings"):
        run_arms(comparison(config, tmp_path / "run", *words))
    shop = write_beir(tmp_path / "relevant_only")
    for file in (shop / "qrels").iterdir():
        lines = file.read_text().splitlines(keepends=True)
        file.write_text("".join(line for line in lines if not line.endswith("\t0\n")))
    config = write_loop_config(tmp_path / "relevant_only.yaml", shop)
    with pytest.raises(UserError, match=r"one label; judge some of .* take rerank/ndcg@10"):
        run_arms(comparison(config, tmp_path / "run", "--primary_metric", "pr_auc"))
    for file in (shop / "qrels").iterdir():
        pd.read_csv(file, sep="\t").assign(score=1).to_csv(file, sep="\t", index=False)
    with pytest.raises(UserError, match="no query has judgements of two grades"):
        run_arms(comparison(config, tmp_path / "run", "--primary_metric", "judged/ndcg@10"))
    assert not (tmp_path / "run").exists()


def write_round_queries(run, queries):
    """Write the queries of round 1 with the columns that do not matter here."""
    others = {"product_id": "p", "title": "chair", "document": "chair", "reason": "", "round": 1}
    columns = others | {"probability": 0.5, "relevance": 0.5} | dict(queries)
    pd.DataFrame(columns).to_parquet(run.round_folder(1) / "queries.parquet")


def test_at_most_the_stated_number_of_accepted_queries_teaches(shop, tmp_path):
    config = write_loop_config(tmp_path / "run.yaml", shop, synthetic_queries_per_round=3)
    run = build_run(config, tmp_path / "run")
    run.round_folder(1).mkdir(parents=True)
    queries = pd.DataFrame({"query": list("abcdefgh"), "accepted": [True] * 6 + [False] * 2})
    write_round_queries(run, queries)
    capped = run._accepted(1)
    assert len(capped) == 3 and capped["accepted"].all()
    assert capped.equals(run._accepted(1))
    run.loop.synthetic_queries_per_round = None
    assert run._accepted(1)["query"].tolist() == list("abcdef")


def test_the_hardest_are_those_furthest_from_their_label(shop, tmp_path):
    settings = {"synthetic_queries_per_round": 2, "hardest_of": 2, "soft_labels": False}
    config = write_loop_config(tmp_path / "run.yaml", shop, **settings)
    run = build_run(config, tmp_path / "run")
    run.round_folder(1).mkdir(parents=True)
    queries = pd.DataFrame(
        {
            "query": list("abcde"),
            "document": ["red chair"] * 5,
            "accepted": [True, True, True, True, False],
            "probability": [0.9, 0.2, 0.6, 0.1, 0.01],
            "relevance": [0.9, 0.6, 0.9, 0.8, 0.9],
        }
    )
    write_round_queries(run, queries)
    assert run._accepted(1)["query"].tolist() == ["d", "b"]  # against the label 1
    # Against soft labels a sure retriever may be the one that is wrong: KL(.5 || .9) = .511 for a,
    # KL(.5 || .2) = .223 for b, .020 for c, and d is 0.
    run.loop.soft_labels = True
    run.calibrated.probability = lambda *_: np.array([0.5, 0.5, 0.5, 0.1])
    assert run._accepted(1)["query"].tolist() == ["a", "b"]


@pytest.mark.slow
def test_two_workers_do_what_one_process_does(finished, tmp_path):
    config, _ = finished
    words = ["--seeds", "2", "--arms", "adversarial", "random_crops", "--ablations", "{}"]
    scores = []
    for workers in ("1", "2"):
        folder = tmp_path / workers
        recipe = comparison(config, folder, *words, "--workers", workers)
        assert run_arms(recipe) == (folder, [0, 1])
        for seed in (0, 1):
            for model in ("retriever", "generator"):
                assert (folder / f"seed_0{seed}/starting_{model}/config.json").is_file()
        scores.append(
            [
                pd.read_parquet(fold_folder(folder, *job) / "random_crops" / "held_out.parquet")
                for job in ((0, 0), (0, 1), (1, 0), (1, 1))
            ]
        )
    for alone, together in zip(*scores, strict=True):
        pd.testing.assert_frame_equal(alone, together, rtol=1e-3, atol=1e-4)
    assert not scores[0][0]["retriever"].equals(scores[0][2]["retriever"])  # another seed


def test_the_first_error_of_workers_ends_the_comparison():
    def fail():
        raise ValueError("the disk is full")

    release = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        futures = [pool.submit(fail), *(pool.submit(release.wait, 10) for _ in range(3))]
        with pytest.raises(ValueError, match="the disk is full"):
            list(_as_completed(pool, futures))
        release.set()
    assert futures[2].cancelled() and futures[3].cancelled()  # the second may have begun


def test_a_worker_that_the_system_ends_is_named(monkeypatch):
    broken = BrokenProcessPool("a process was terminated abruptly")
    monkeypatch.setattr(arms, "ProcessPoolExecutor", lambda *_: FailingPool(broken))
    with pytest.raises(UserError, match="ended a worker, perhaps for want of memory; give fewer"):
        _run_in_workers(None, [0], [(0, 0)], 2)


class FailingPool(ThreadPoolExecutor):
    """A pool of which every task ends with an error."""

    def __init__(self, error):
        super().__init__(1)
        self.error = error

    def submit(self, *_):
        future = Future()
        future.set_exception(self.error)
        return future


def test_an_interrupt_ends_workers_that_know_nothing_of_it(tmp_path):
    script = tmp_path / "job.py"
    script.write_text(
        "import signal, time\n"
        "from pathlib import Path\n"
        "from agr_trl import arms\n"
        "def work(recipe, seed, fold):\n"
        "    Path(__file__).with_name(f'begun_{fold}').touch()\n"
        "    print(fold, flush=True)\n"
        "    time.sleep(100)\n"
        "if __name__ == '__main__':\n"
        # Interrupts are ignored where these tests are a shell's background job.
        "    signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "    arms.run_fold = work\n"
        "    arms._run_in_workers(None, [], [(0, fold) for fold in range(4)], 2)\n"
    )
    with subprocess.Popen(
        [sys.executable, script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as job:
        assert {job.stdout.readline(), job.stdout.readline()} == {"0\n", "1\n"}
        began = time.monotonic()
        job.send_signal(signal.SIGINT)  # to the job alone, not to its group as a terminal does
        assert "KeyboardInterrupt" in job.communicate()[1]
        assert time.monotonic() - began < 50
    assert sorted(path.name for path in tmp_path.glob("begun_*")) == ["begun_0", "begun_1"]


def test_workers_end_with_a_killed_job(tmp_path):
    script = tmp_path / "job.py"
    script.write_text(
        "import multiprocessing, os, time\n"
        "from agr_trl.arms import _start_worker\n"
        "def work():\n"
        "    _start_worker(1)\n"
        "    print(os.getpid(), flush=True)\n"
        "    time.sleep(100)\n"
        "if __name__ == '__main__':\n"
        "    multiprocessing.get_context('spawn').Process(target=work).start()\n"
        "    time.sleep(100)\n"
    )
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True) as job:
        assert int(job.stdout.readline()) > 0  # the worker is at work
        job.kill()
        # The pipe ends, so the worker has let go of it long before its 100 seconds are over.
        began = time.monotonic()
        assert job.stdout.read() == ""
        assert time.monotonic() - began < 50
