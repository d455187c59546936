"""The adversarial loop as a whole, at toy size: what a run leaves behind, and how it resumes."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from sklearn.linear_model import LogisticRegression
from toy_runs import (
    STAGES,
    build_run,
    contents,
    run_main,
    write_beir,
    write_loop_config,
    write_pairs,
)
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    TrainerCallback,
)

from agr_trl import adversarial
from agr_trl.adversarial import AdversarialRun
from agr_trl.app import open_run
from agr_trl.config import Recipe
from agr_trl.errors import UserError
from agr_trl.retriever import Retriever

QUERY_COLUMNS = {
    "product_id", "document", "title", "query", "round", "probability", "relevance", "reason",
    "accepted", "probability_after",
}  # fmt: skip


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    return write_beir(tmp_path_factory.mktemp("shop") / "beir")


@pytest.fixture(scope="module")
def config(shop):
    return write_loop_config(shop.parent / "run.yaml", shop)


@pytest.fixture(scope="module")
def finished(config):
    """A finished run of one round; tests that change it take a copy."""
    folder = config.parent / "finished"
    run_main("train_adversarial", "--config", config, "--output_dir", folder)
    return folder


@pytest.fixture
def copy(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "copy")


def read(folder: Path, name: str = "metrics.json"):
    return json.loads((folder / name).read_text())


def test_run_folder_is_complete(finished):
    top = {path.name for path in finished.iterdir()}
    assert top == {
        ".lock", "config.yaml", "run.json", "timings.json", "metrics.json", "report.html",
        "retriever", "generator", "round_00", "round_01",
    }  # fmt: skip
    for number in (0, 1):
        assert {path.name for path in (finished / f"round_{number:02d}").iterdir()} == {
            "generator", "generator_log.json", "queries.parquet", "retriever",
            "retriever_log.json", "metrics.json",
        }  # fmt: skip
    metrics = read(finished)
    assert metrics["rounds"] == [read(finished / "round_00"), read(finished / "round_01")]
    best = 1 if metrics["rounds"][1]["kept"] else 0
    assert metrics["best_round"] == best
    assert metrics["dev"] == metrics["rounds"][best]["dev"]
    assert set(metrics["baselines"]) == {"bm25", "cosine"}
    assert set(metrics["test"]) == {"bm25", "cosine", "supervised", "adversarial"}
    assert not any("runtime" in key or "per_second" in key for key in metrics["dev"])
    assert "<html" in (finished / "report.html").read_text()


def test_models_load_with_plain_transformers(finished):
    best = finished / f"round_{read(finished)['best_round']:02d}"
    exported = AutoModelForSequenceClassification.from_pretrained(finished / "retriever")
    assert exported.config.num_labels == 1
    trained = AutoModelForSequenceClassification.from_pretrained(best / "retriever")
    for name, value in trained.state_dict().items():
        assert torch.equal(exported.state_dict()[name], value), name
    generator = AutoModelForSeq2SeqLM.from_pretrained(finished / "generator").eval()
    tokenizer = AutoTokenizer.from_pretrained(finished / "generator")
    prompt = tokenizer(["Title: red oak chair - Description: "], return_tensors="pt")
    assert generator.generate(**prompt, max_new_tokens=4).shape[0] == 1
    # A round's generator is an adapter over the warm-up; no pickle and no reference copy beside it.
    names = {path.name for path in (finished / "round_01" / "generator").iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors"} <= names
    assert not names & {"training_args.bin", "ref", "default"}
    adapter = read(finished / "round_01" / "generator", "adapter_config.json")
    assert adapter["task_type"] == "SEQ_2_SEQ_LM"


def test_every_query_keeps_where_it_came_from(finished):
    for number in (0, 1):
        queries = pd.read_parquet(finished / f"round_{number:02d}" / "queries.parquet")
        assert set(queries.columns) >= QUERY_COLUMNS
        assert len(queries) == 10 * 2  # products_per_round * queries_per_product
        assert (queries["round"] == number).all()
        assert (queries["accepted"] == (queries["reason"] == "")).all()
        for name in ("probability", "probability_after", "relevance"):
            assert queries[name].between(0, 1).all(), name
        counts = read(finished / f"round_{number:02d}")["queries"]
        assert counts["written"] == 20
        assert counts["accepted"] == queries["accepted"].sum()
        assert counts["accepted"] + sum(counts["not_accepted"].values()) == 20


def test_queries_hold_the_attacked_and_the_new_retrievers_probability(finished):
    queries = pd.read_parquet(finished / "round_01" / "queries.parquet")
    for number, column in ((0, "probability"), (1, "probability_after")):
        retriever = Retriever.from_pretrained(str(finished / f"round_{number:02d}" / "retriever"))
        log_odds = retriever.score(queries["query"].tolist(), queries["document"].tolist())
        expected = 1 / (1 + np.exp(-log_odds))
        assert queries[column].to_numpy() == pytest.approx(expected, abs=1e-5)


def test_products_are_drawn_until_enough_queries_are_accepted(copy, config, caplog):
    accepted = pd.read_parquet(copy / "round_01" / "queries.parquet")["accepted"].sum()
    assert accepted
    several = ((accepted, 4, 1, 1), (accepted, 4, 2, 2), (accepted + 1, 4, 1, 2))
    several += ((1000, 4, 1, 2), (1000, 1, 1, 1))
    for wanted, most, hardest_of, draws in several:  # 20 products, 10 a draw
        changes = ("--synthetic_queries_per_round", str(wanted), "--max_draws", str(most))
        run = build_run(config, copy, *changes, f"--hardest_of={hardest_of}")
        run._write_queries(copy / "more.parquet", 1)
        queries = pd.read_parquet(copy / "more.parquet")
        assert len(queries) == draws * 20
        assert queries["product_id"].nunique() == draws * 10
        assert not (copy / "queries_parts").exists()
    assert "of 1000 wanted" in caplog.text


def test_rerun_does_nothing(finished, config):
    def times():
        return {
            path: path.stat().st_mtime_ns
            for path in finished.rglob("*")
            if path.is_file() and path.name not in ("report.html", ".lock")
        }

    before = times()
    run_main("train_adversarial", "--config", config, "--output_dir", finished)
    assert times() == before


def test_config_of_a_run_starts_the_same_run(finished, config, tmp_path):
    settings = yaml.safe_load((finished / "config.yaml").read_text())
    assert settings["generator"]["num_generations"] == 4
    again = build_run(finished / "config.yaml", tmp_path / "again").recipe.resolved()
    first = build_run(config, tmp_path / "again").recipe.resolved()
    assert again == first


def test_models_that_no_later_round_needs_are_pruned(copy, config):
    run = build_run(config, copy, "--kept_models=1")
    for number in (2, 3, 4):
        shutil.copytree(copy / "round_01", copy / f"round_{number:02d}")
    kept = {0: True, 1: True, 2: True, 3: False, 4: False}
    for number, is_kept in kept.items():
        file = copy / f"round_{number:02d}" / "metrics.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"kept": is_kept}))
    build_run(config, copy)._prune(4)
    assert all((copy / f"round_{number:02d}" / "retriever").is_dir() for number in kept)
    run._prune(4)
    left = [n for n in kept if (copy / f"round_{n:02d}" / "retriever").is_dir()]
    assert left == [n for n in kept if (copy / f"round_{n:02d}" / "generator").is_dir()]
    assert left == [0, 2, 4]  # round 0, the best, the last
    assert all((copy / f"round_{n:02d}" / "queries.parquet").is_file() for n in kept)
    # Round 1 is no longer there to end with, and what the run had exported stays.
    before = contents(copy / "retriever")
    (copy / "metrics.json").unlink()
    with pytest.raises(UserError, match=r"round_01/retriever` is gone.*give `--rounds` as before"):
        build_run(config, copy, "--kept_models=1")._finish()
    assert contents(copy / "retriever") == before


def test_retrievers_that_label_again_are_not_pruned(copy, config):
    words = ("--kept_models=1", "--teacher=ensemble", "--keep_old_queries=true", "--hardest_of=2")
    words += ("--synthetic_queries_per_round=4",)
    set_kept(copy, 1)
    for number in (2, 3):
        shutil.copytree(copy / "round_01", copy / f"round_{number:02d}")
    build_run(config, copy, *words)._prune(3)
    assert (copy / "round_01" / "retriever").is_dir()
    assert not (copy / "round_01" / "generator").exists()


def test_retrievers_that_are_attacked_again_are_not_pruned(copy, config):
    set_kept(copy, 1)
    for number in (2, 3):
        shutil.copytree(copy / "round_01", copy / f"round_{number:02d}")
    build_run(config, copy, "--kept_models=1", "--attacked_retrievers=2")._prune(3)
    left = [n for n in range(4) if (copy / f"round_{n:02d}" / "retriever").is_dir()]
    assert left == [0, 2, 3]


@pytest.mark.parametrize(("asked", "attacked"), [(1, [2]), (2, [2, 0]), (5, [2, 0])])
def test_the_last_kept_retrievers_are_attacked_together(asked, attacked, copy, config, monkeypatch):
    shutil.copytree(copy / "round_01", copy / "round_02")
    for number, is_kept in ((1, False), (2, True)):
        file = copy / f"round_{number:02d}" / "metrics.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"kept": is_kept}))
    loaded = []

    def stop(retrievers, *rest, **options):
        loaded.extend(int(Path(one.model.name_or_path).parent.name[-2:]) for one in retrievers)
        raise InterruptedError

    monkeypatch.setattr(adversarial, "attack_rewards", stop)
    run = build_run(config, copy, f"--attacked_retrievers={asked}")
    with pytest.raises(InterruptedError):
        run._train_generator(copy / "round_03" / "generator", 3)
    assert loaded == attacked


def test_test_numbers_are_of_the_models_and_weights_that_dev_chose(copy, config, monkeypatch):
    for number, weight in ((0, 0.2), (1, 0.7)):
        file = copy / f"round_{number:02d}" / "metrics.json"
        metrics = json.loads(file.read_text())
        metrics["dev"]["blend_weight"] = weight
        file.write_text(json.dumps(metrics))

    def look(self, scorer, split, blend_weight=None):
        owner = getattr(scorer, "__self__", None)
        name = Path(owner.model.name_or_path).parent.name if hasattr(owner, "model") else scorer
        if split == "dev":
            assert name == self.calibrated.score
            return {"blend_weight": 0.5}
        return name, split, blend_weight

    run = build_run(config, copy)
    with monkeypatch.context() as patch:
        patch.setattr(AdversarialRun, "evaluate", look)
        assert run._evaluate_test(1, 0.7) == {
            "bm25": (None, "test", None),
            "cosine": (run.calibrated.score, "test", 0.5),
            "supervised": ("round_00", "test", 0.2),
            "adversarial": ("round_01", "test", 0.7),
        }
    run._export(1, 0.7)
    assert Retriever.from_pretrained(str(copy / "retriever")).blend_weight == 0.7
    # Nothing is chosen on test: without a weight there is no blend.
    assert "blend/ndcg@10" in run.evaluate(run.calibrated.score, "dev")
    assert "blend/ndcg@10" in run.evaluate(run.calibrated.score, "test", 0.5)
    assert "blend/ndcg@10" not in run.evaluate(run.calibrated.score, "test")


@pytest.mark.parametrize(("value", "is_kept"), [(0.25, True), (0.24, False)])
def test_a_round_is_held_against_the_best_one(value, is_kept, copy, config, monkeypatch):
    shutil.copytree(copy / "round_01", copy / "round_02")
    shutil.copytree(copy / "round_01", copy / "round_03")
    for number, (dev, kept) in enumerate(((0.9, True), (0.5, True), (0.1, False))):
        file = copy / f"round_{number:02d}" / "metrics.json"
        changes = {"kept": kept, "dev": {"judged/ndcg@10": dev}}
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    monkeypatch.setattr(AdversarialRun, "evaluate", lambda *_: {"judged/ndcg@10": value})
    run = build_run(config, copy, "--max_dev_drop=0.25")  # below the .5 of round 1
    run._evaluate_round(copy / "round_03" / "metrics.json", 3)
    assert read(copy / "round_03")["kept"] is is_kept


def test_the_audit_of_a_round_by_hand(copy, config, monkeypatch):
    run = build_run(config, copy)
    queries = pd.DataFrame(
        {
            "query": ["red chair", "lamp", "blue lamp", "desk", "oak"],
            "document": "red oak chair",
            "product_id": "p0",
            "accepted": [True, True, True, True, False],
            "reason": ["", "", "", "", "low_relevance"],
            "relevance": [0.9, 0.8, 0.7, 0.6, 0.0],
            "probability": [0.2, 0.4, 0.6, 0.8, 0.0],
        }
    )
    found = run._query_metrics(queries)
    assert (found["written"], found["accepted"], found["acceptance_rate"]) == (5, 4, 0.8)
    assert found["not_accepted"] == {"low_relevance": 1}
    assert found["mean_relevance"] == pytest.approx(0.6)
    assert found["mean_probability"] == pytest.approx(0.4)
    assert found["accepted_mean_probability"] == pytest.approx(0.5)
    assert "truly_relevant_share" not in found
    # The oracle's grades of the accepted ones; None is of a query that it cannot read.
    asked = []
    oracle = SimpleNamespace(grade_many=lambda *texts: asked.append(texts) or [2, 1, 0, None])
    monkeypatch.setattr(adversarial, "demo_oracle", lambda _: oracle)
    monkeypatch.setattr(Recipe, "is_demo", True)
    assert run._query_metrics(queries)["truly_relevant_share"] == 0.5
    assert asked == [(["red chair", "lamp", "blue lamp", "desk"], ["p0"] * 4)]


def test_useless_queries_and_retrievers_end_a_round(copy, config, monkeypatch):
    run = build_run(config, copy)
    blank = pd.read_parquet(copy / "round_01" / "queries.parquet").assign(query=" ")
    with monkeypatch.context() as patch:
        patch.setattr(AdversarialRun, "_draw_queries", lambda *_: blank)
        with pytest.raises(UserError, match="blank queries only"):
            run._write_queries(copy / "more.parquet", 1)
    monkeypatch.setattr(Retriever, "score", lambda self, queries, documents: np.ones(len(queries)))
    with pytest.raises(UserError, match=r"the retriever gives all .* the log-odds 1.000"):
        run._evaluate_round(copy / "round_00" / "metrics.json", 0)


def test_a_rounds_retriever_is_averaged_with_the_one_before(finished, config, tmp_path):
    def weights(folder: Path) -> dict[str, torch.Tensor]:
        return Retriever.from_pretrained(str(folder / "retriever")).model.state_dict()

    build_run(config, tmp_path / "run", "--weight_averaging=0.25").run_rounds(1)
    before, learned = weights(finished / "round_00"), weights(finished / "round_01")
    for name, weight in weights(tmp_path / "run" / "round_01").items():
        torch.testing.assert_close(weight, 0.25 * before[name] + 0.75 * learned[name])
    assert any(not weight.equal(before[name]) for name, weight in learned.items())


def test_retrievers_end_between_the_lesson_and_the_judgements(config, tmp_path):
    def weights(folder: Path) -> dict[str, torch.Tensor]:
        return Retriever.from_pretrained(str(folder)).model.state_dict()

    plain, averaged, whole = (tmp_path / name for name in ("plain", "averaged", "whole"))
    lesson = "--distillation_steps=3"
    build_run(config, plain, lesson).run_rounds(0)
    build_run(config, averaged, lesson, "--lesson_averaging=0.25").run_rounds(0)
    start = weights(averaged / "round_00" / "starting_retriever")
    learned = weights(plain / "round_00" / "retriever")
    for name, weight in weights(averaged / "round_00" / "retriever").items():
        torch.testing.assert_close(weight, 0.25 * start[name] + 0.75 * learned[name])
    assert any(not weight.equal(start[name]) for name, weight in learned.items())
    # A later round goes back to the same start, here all the way, and so does one without a lesson
    # from S: the words that a new retriever has learned are its start.
    build_run(config, whole, "--lesson_averaging=1").run_rounds(1)
    start = weights(whole / "round_00" / "starting_retriever")
    for number in (0, 1):
        for name, weight in weights(whole / f"round_{number:02d}" / "retriever").items():
            torch.testing.assert_close(weight, start[name])


def test_going_back_needs_a_start_that_ranks(config, tmp_path):
    words = ("--lesson_averaging=0.5", "--retriever.new_retriever_steps=0")
    with pytest.raises(UserError, match="`new` does not; set `distillation_steps`"):
        build_run(config, tmp_path / "run", *words).run()


def test_lost_outputs_are_made_again_byte_for_byte(finished, copy, config):
    for name in ("retriever", "metrics.json"):
        lost = copy / "round_01" / name
        shutil.rmtree(lost) if lost.is_dir() else lost.unlink()
    (copy / "metrics.json").unlink()
    build_run(config, copy).run()
    assert contents(copy) == contents(finished)


def test_interrupted_run_ends_as_an_uninterrupted_one(finished, config, tmp_path, monkeypatch):
    interrupted = []

    def stop_once(stage):
        work = getattr(AdversarialRun, stage)

        def method(self, target, number):
            work(self, target, number)
            if (stage, number) not in interrupted:  # all is written, but under no final name
                interrupted.append((stage, number))
                raise KeyboardInterrupt

        method.__name__ = stage
        return method

    for stage in STAGES:
        monkeypatch.setattr(AdversarialRun, stage, stop_once(stage))
    folder = tmp_path / "run"
    for _ in range(8):
        with pytest.raises(KeyboardInterrupt):
            build_run(config, folder).run()
    summary = build_run(config, folder).run()
    assert len(interrupted) == 8  # four stages in each of two rounds
    assert summary == read(finished)
    for number in ("round_00", "round_01"):
        assert read(folder / number) == read(finished / number)
    assert not list(folder.rglob("*.partial")) + list(folder.rglob("*_checkpoints"))


def test_checkpoints_stay_until_what_was_trained_is_there(config, tmp_path, monkeypatch):
    words = ("--retriever.save_strategy=steps", "--retriever.save_steps=1")
    words += ("--retriever.lr_scheduler_type=constant",)  # so that a step too many would show
    folder = tmp_path / "run" / "round_00"
    with monkeypatch.context() as patch:
        patch.setattr(AdversarialRun, "_average", _interrupt)
        with pytest.raises(KeyboardInterrupt):
            build_run(config, tmp_path / "run", *words).run_rounds(0)
    assert (folder / "retriever_checkpoints" / "checkpoint-2").is_dir()
    assert not (folder / "retriever").exists()
    build_run(config, tmp_path / "run", *words).run_rounds(0)
    build_run(config, tmp_path / "whole", *words).run_rounds(0)
    assert not list(folder.glob("*_checkpoints"))
    same, whole = contents(folder), contents(tmp_path / "whole" / "round_00")
    assert "retriever/model.safetensors" in same
    # All but the log, whose last line is a mean over what a process has trained.
    assert {name for name in same if same[name] != whole[name]} <= {"retriever_log.json"}
    assert same.keys() == whole.keys()


def test_a_catalogue_smaller_than_a_batch_is_refused_before_any_work(config, tmp_path):
    words = ("--generator.per_device_train_batch_size=48", "--generator.num_generations=2")
    with pytest.raises(UserError, match="asks for 24 prompts, and there are "):
        build_run(config, tmp_path / "run", *words)


@pytest.mark.slow
def test_run_stopped_within_each_training_resumes_from_its_checkpoints(
    config, tmp_path, monkeypatch
):
    saving = [f"--{stage}.save_strategy=steps" for stage in ("retriever", "warm_up", "generator")]
    saving += [f"--{stage}.save_steps=1" for stage in ("retriever", "warm_up", "generator")]
    words = ["--rounds=2", "--max_dev_drop=1", *saving]  # both rounds are kept
    expected = build_run(config, tmp_path / "whole", *words).run()
    train, stopped = adversarial.train_stage, []

    class StopOnce(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 1 and args.output_dir not in stopped:
                stopped.append(args.output_dir)
                raise KeyboardInterrupt

    def train_and_stop(trainer):
        trainer.add_callback(StopOnce())
        train(trainer)

    monkeypatch.setattr(adversarial, "train_stage", train_and_stop)
    for _ in range(6):  # two trainings in each of three rounds
        with pytest.raises(KeyboardInterrupt):
            build_run(config, tmp_path / "stopped", *words).run()
    assert build_run(config, tmp_path / "stopped", *words).run() == expected
    assert not list((tmp_path / "stopped").rglob("*_checkpoints"))


def test_run_stopped_while_it_exports_exports_again(finished, copy, config, monkeypatch):
    (copy / "metrics.json").unlink()
    shutil.rmtree(copy / "retriever")
    with monkeypatch.context() as patch:
        patch.setattr(adversarial, "save_merged_generator", _interrupt)
        with pytest.raises(KeyboardInterrupt):
            build_run(config, copy).run()
    assert not (copy / "metrics.json").exists()
    build_run(config, copy).run()
    assert contents(copy) == contents(finished)


def test_a_finished_run_exports_a_removed_model_again(finished, copy, config):
    shutil.rmtree(copy / "generator")
    build_run(config, copy).run()
    assert contents(copy) == contents(finished)


def test_the_generator_that_attacks_is_the_warm_ups(config, tmp_path):
    with pytest.raises(UserError, match="unknown setting `--generator_name_or_path`"):
        build_run(config, tmp_path, "--generator.generator_name_or_path", "google/flan-t5-base")


def _interrupt(*args):
    raise KeyboardInterrupt


def test_a_run_of_a_version_with_fewer_settings_goes_on(copy, config):
    file = copy / "config.yaml"
    settings = yaml.safe_load(file.read_text())
    del settings["lesson_averaging"], settings["retriever"]["disable_dropout"]
    settings["generator"]["generator_name_or_path"] = "t5-base"  # once written, never read
    file.write_text(yaml.safe_dump(settings, sort_keys=False))
    with pytest.raises(UserError, match=r"\(lesson_averaging: 0.0 -> 0.5\)"):
        build_run(config, copy, "--lesson_averaging", "0.5").run()
    with pytest.raises(UserError, match=r"\(retriever.disable_dropout: False -> True\)"):
        build_run(config, copy, "--retriever.disable_dropout", "true").run()
    open_run(copy)
    settings |= {"dev_fraction": 0.3, "lesson_averaging": 0.0}
    settings["generator"]["hub_strategy"] = "end"
    settings["retriever"]["label_smoothing_factor"] = 0.1
    file.write_text(yaml.safe_dump(settings, sort_keys=False))
    build_run(config, copy).run()
    assert yaml.safe_load(file.read_text())["lesson_averaging"] == 0.0


def test_a_start_that_is_there_need_not_be_made_again(config, tmp_path):
    words = ("--lesson_averaging=0.5", "--retriever.new_retriever_steps=0")
    (tmp_path / "run" / "round_00" / "starting_retriever").mkdir(parents=True)
    build_run(config, tmp_path / "run", *words)


def test_other_settings_or_other_data_are_refused(copy, config, shop, tmp_path):
    with pytest.raises(UserError, match=r"retriever\.max_steps: 2 -> 3.*another --output_dir"):
        build_run(config, copy, "--retriever.max_steps", "3").run()
    with pytest.raises(UserError, match="seed: 0 -> 1"):
        build_run(config, copy, "--seed", "1").run()
    moved = shutil.copytree(shop, tmp_path / "moved")
    build_run(config, copy, "--dataset_path", str(moved)).run()  # the same data at another place
    corpus = moved / "corpus.jsonl"
    corpus.write_text(corpus.read_text().replace("red oak chair", "red elm chair"))
    with pytest.raises(UserError, match=r"begun with other data \(products: 20 rows with sha256"):
        build_run(config, copy, "--dataset_path", str(moved)).run()
    corpus.write_text(corpus.read_text() + '{"_id": "new", "title": "new"}\n')
    with pytest.raises(UserError, match=r"products: 20 rows .* -> 21 rows [^;]*\); give another"):
        build_run(config, copy, "--dataset_path", str(moved)).run()


def test_a_run_says_what_its_numbers_come_from(copy, config, caplog):
    state = read(copy, "run.json")
    assert state.keys() == {
        "data_fingerprint", "data", "commit", "versions", "hardware", "processes",
    }  # fmt: skip
    assert state["data"].keys() == {"products", "queries", "judgements"}
    assert state["data"]["products"].startswith("20 rows with sha256 ")
    assert state["versions"]["torch"] == torch.__version__
    assert {"python", "transformers", "trl", "peft"} < state["versions"].keys()
    assert state["processes"] == 1
    build_run(config, copy)._begin()
    assert "begun elsewhere" not in caplog.text
    changed = state | {"processes": 4, "versions": state["versions"] | {"torch": "2.0"}}
    (copy / "run.json").write_text(json.dumps(changed))
    build_run(config, copy)._begin()
    assert "processes: 4 -> 1; versions.torch: 2.0 -> " in caplog.text
    build_run(config, copy, "--rounds", "2")._begin()  # a free setting
    assert "rounds: 2" in (copy / "config.yaml").read_text()
    assert read(copy, "run.json") == changed


def test_fallen_round_is_rolled_back_and_the_next_starts_from_the_best(copy, config, monkeypatch):
    set_kept(copy, 1)
    trained, mixed, loaded = [], [], []
    evaluate, make_pairs = AdversarialRun.evaluate, adversarial.synthetic_pairs
    make_trainer, load = adversarial.retriever_trainer, Retriever.from_pretrained

    def falling(self, scorer, split, blend_weight=None):
        metrics = evaluate(self, scorer, split, blend_weight)
        if not (self.round_folder(2) / "metrics.json").exists():
            metrics["judged/ndcg@10"] = -1.0  # round 2 falls
        elif not (self.round_folder(3) / "metrics.json").exists():
            metrics["judged/ndcg@10"] = 2.0  # round 3 rises
        return metrics

    def spy_pairs(accepted, *rest):
        mixed.append(sorted(accepted["round"].unique()))
        return make_pairs(accepted, *rest)

    def spy_trainer(retriever, args, train, *rest, **options):
        trained.append(train)
        return make_trainer(retriever, args, train, *rest, **options)

    def spy_load(name_or_path, *rest):
        loaded.append("/".join(Path(name_or_path).parts[-2:]))
        return load(name_or_path, *rest)

    monkeypatch.setattr(AdversarialRun, "evaluate", falling)
    monkeypatch.setattr(adversarial, "synthetic_pairs", spy_pairs)
    monkeypatch.setattr(adversarial, "retriever_trainer", spy_trainer)
    monkeypatch.setattr(Retriever, "from_pretrained", spy_load)
    # More rounds on a finished folder are fine; the first ones are kept as they are.
    run = build_run(config, copy, "--rounds", "3", "--max_synthetic_share", "0.6")
    summary = run.run()

    assert [r["kept"] for r in summary["rounds"]] == [True, True, False, True]
    assert summary["best_round"] == 3
    assert len(summary["rounds"]) == 4
    # Attacked, asked for probabilities, and trained further, in rounds 2 and 3 alike.
    assert loaded.count("round_01/retriever") == 6
    assert loaded.count("round_02/retriever") == 1  # its evaluation
    assert run._generator_to_attack_with(3) == copy / "round_01" / "generator"
    # Accepted queries of kept rounds stay; those of the round that fell do not come back.
    assert mixed == [[1, 2], [1, 3]]
    gold = run.gold
    for pairs in trained:
        synthetic = pairs["source"].str.startswith("synthetic")
        keys = ["query", "document", "label", "source"]
        left = pairs[~synthetic][keys].sort_values(keys, ignore_index=True)
        assert left.equals(gold[keys].sort_values(keys, ignore_index=True))
        assert 0 < synthetic.mean() <= 0.6


def set_kept(folder: Path, number: int) -> None:
    """Have a finished round count as kept, whatever two steps of training did to its numbers."""
    path = folder / f"round_{number:02d}" / "metrics.json"
    metrics = json.loads(path.read_text()) | {"kept": True}
    path.write_text(json.dumps(metrics))


@pytest.mark.parametrize("source", ["none", "random_crops"])
def test_a_control_ends_with_the_generator_of_the_warm_up(source, config, tmp_path):
    run = build_run(config, tmp_path / "run", "--query_source", source, "--max_dev_drop=1")
    assert run.run()["best_round"] == 1
    weights = [
        AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "run" / name).state_dict()
        for name in ("generator", "round_00/generator")
    ]
    assert all(weight.equal(weights[1][name]) for name, weight in weights[0].items())


def test_synthetic_share_is_capped(config, copy):
    shutil.rmtree(copy / "round_01" / "retriever")
    run = build_run(config, copy, "--max_synthetic_share", "0.1")
    pairs = run._round_pairs(1)
    share = pairs["source"].str.startswith("synthetic").mean()
    assert 0 < share <= 0.1


def test_no_accepted_query_names_the_remedy(config, copy):
    path = copy / "round_01" / "queries.parquet"
    queries = pd.read_parquet(path).assign(accepted=False, reason="low_relevance")
    queries.to_parquet(path, index=False)
    for name in ("retriever", "metrics.json"):
        lost = copy / "round_01" / name
        shutil.rmtree(lost) if lost.is_dir() else lost.unlink()
    with pytest.raises(UserError, match=r"round 1: no generated query.*--reward.min_relevance"):
        build_run(config, copy).run()


def test_wrong_dev_metric_is_refused_before_any_model_loads(tmp_path, monkeypatch):
    monkeypatch.setattr(adversarial, "new_or_loaded_generator", _interrupt)
    data = write_pairs(tmp_path / "pairs")
    config = write_loop_config(tmp_path / "run.yaml", data, "pairs")
    with pytest.raises(UserError, match=r"judged/ndcg@10; this data has roc_auc, pr_auc, f1"):
        build_run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("--generator.num_generations=3", "must be divisible by num_generations"),
        ("--generator.top_p=0.9", "`top_p` is 0.9, but completions are scored without it"),
        ("--generator.reward_weights=1", "there are 3 rewards to weigh"),
        ("--retriever.metric_for_best_model=recall", "is recall, which these dev pairs do not"),
        ("--generator.lora_rank=-1", "`lora_rank` is -1; it must be at least 0"),
    ],
)
def test_a_later_stages_settings_are_refused_at_once(config, tmp_path, word, message):
    with pytest.raises(UserError, match=message):
        build_run(config, tmp_path / "run", word)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("--retriever.frozen_layers=9", "`frozen_layers` is 9; the retriever has"),
        ("--retriever.new_retriever_width=33", "is 33; it must be a multiple of 32"),
    ],
)
def test_what_the_retriever_lacks_is_told_before_the_warm_up(config, tmp_path, word, message):
    with pytest.raises(UserError, match=message):
        build_run(config, tmp_path / "run", word).run()
    assert not (tmp_path / "run" / "round_00").exists()


def test_early_stopping_is_checked_with_the_settings(config, tmp_path):
    words = ("--retriever.early_stopping_patience=2", "--retriever.load_best_model_at_end=false")
    with pytest.raises(UserError, match="`early_stopping_patience` needs `load_best_model_at_end"):
        build_run(config, tmp_path / "run", *words)


def test_rankings_are_no_dev_metric_where_dev_has_nothing_relevant(shop, tmp_path):
    data = shutil.copytree(shop, tmp_path / "beir")
    dev = pd.read_csv(data / "qrels" / "dev.tsv", sep="\t")
    dev.assign(score=0).to_csv(data / "qrels" / "dev.tsv", sep="\t", index=False)
    config = write_loop_config(tmp_path / "run.yaml", data)
    with pytest.raises(UserError, match=r"is judged/ndcg@10; this data has f1, accuracy$"):
        build_run(config, tmp_path / "run")


def test_a_warm_up_needs_relevant_dev_pairs_only_to_be_evaluated(shop, tmp_path):
    data = shutil.copytree(shop, tmp_path / "beir")
    dev = pd.read_csv(data / "qrels" / "dev.tsv", sep="\t")
    dev.assign(score=0).to_csv(data / "qrels" / "dev.tsv", sep="\t", index=False)
    config = write_loop_config(tmp_path / "run.yaml", data, dev_metric="accuracy")
    build_run(config, tmp_path / "run")._warm_up(tmp_path / "generator", 0)
    assert (tmp_path / "generator" / "model.safetensors").is_file()
    words = ("--warm_up.eval_strategy=steps", "--warm_up.eval_steps=1")
    with pytest.raises(UserError, match="split 'dev' has no relevant pair"):
        build_run(config, tmp_path / "run", *words)._warm_up(tmp_path / "other", 0)


def test_area_is_no_dev_metric_where_dev_has_one_class(shop, tmp_path):
    data = shutil.copytree(shop, tmp_path / "beir")
    dev = pd.read_csv(data / "qrels" / "dev.tsv", sep="\t")
    dev[dev["score"] > 0].to_csv(data / "qrels" / "dev.tsv", sep="\t", index=False)
    config = write_loop_config(tmp_path / "run.yaml", data, dev_metric="pr_auc")
    with pytest.raises(UserError, match=r"`dev_metric` is pr_auc; this data has f1, accuracy"):
        build_run(config, tmp_path / "run")


def test_train_split_of_relevant_products_only_is_calibrated_on_mined_negatives(shop, tmp_path):
    # Most BEIR sets list relevant products only.
    data = shutil.copytree(shop, tmp_path / "beir")
    train = pd.read_csv(data / "qrels" / "train.tsv", sep="\t")
    train[train["score"] > 0].to_csv(data / "qrels" / "train.tsv", sep="\t", index=False)
    config = write_loop_config(tmp_path / "run.yaml", data)
    run = build_run(config, tmp_path / "run")
    assert (run.gold["label"] == 0).any()
    low, high = run.calibrated.score(["red chair"] * 2, ["blue desk lamp", "red oak chair"])
    assert low < high


def test_s_is_calibrated_on_train_pairs(config, tmp_path):
    run = build_run(config, tmp_path / "run")
    train = run.dataset.pairs("train")
    known = run.relevance.score(train["query"].tolist(), train["document"].tolist()).reshape(-1, 1)
    mean, scale = known.mean(), known.std()
    weighing = LogisticRegression(C=100).fit((known - mean) / scale, train["label"] >= 0.5)
    asked = ["red chair"] * 2, ["blue desk lamp", "red oak chair"]
    expected = weighing.decision_function(
        (run.relevance.score(*asked).reshape(-1, 1) - mean) / scale
    )
    assert run.calibrated.score(*asked) == pytest.approx(expected, rel=1e-3)


def test_the_ensemble_hears_the_attacked_retriever_too(config, copy):
    run = build_run(config, copy, "--teacher", "ensemble")
    queries, documents = ["red chair"] * 2, ["blue desk lamp", "red oak chair"]
    before = run._teacher(1).score(queries, documents)
    assert run._teacher(1) is run._teacher(1)  # fitted once for each retriever
    alone = run.calibrated.score(queries, documents)
    assert not np.allclose(before, alone)
    # By hand: logistic regression on dev of S, its weakest word and the round's retriever, all
    # standardised.
    retriever = Retriever.from_pretrained(str(copy / "round_00" / "retriever"))
    dev = run.dataset.pairs("dev")

    def judged(pairs):
        judges = (run.relevance.score, run.relevance.weakest_word, retriever.score)
        return np.column_stack([judge(*pairs) for judge in judges])

    known = judged((dev["query"].tolist(), dev["document"].tolist()))
    scale = known.std(axis=0)
    weighing = LogisticRegression(C=100).fit((known - known.mean(axis=0)) / scale, dev["label"])
    asked = (judged((queries, documents)) - known.mean(axis=0)) / scale
    assert before == pytest.approx(weighing.decision_function(asked), rel=1e-3)


def test_distillation_comes_before_judged_pairs_and_resumes(config, tmp_path, monkeypatch):
    words = ("--rounds", "0", "--distillation_steps", "3", "--retriever.frozen_layers", "1")
    with monkeypatch.context() as patch:
        patch.setattr(AdversarialRun, "_train_retriever", _interrupt)
        with pytest.raises(KeyboardInterrupt):
            build_run(config, tmp_path / "run", *words).run()
    folder = tmp_path / "run" / "round_00"
    distilled = folder / "starting_retriever"
    log = json.loads((folder / "distillation_log.json").read_text())
    assert log[-1]["step"] == 3
    before = (distilled / "model.safetensors").read_bytes()

    with monkeypatch.context() as patch:  # it is not given again
        patch.setattr(AdversarialRun, "distil_relevance", _interrupt)
        build_run(config, tmp_path / "run", *words).run()
    assert (distilled / "model.safetensors").read_bytes() == before
    learned = Retriever.from_pretrained(str(distilled)).model.state_dict()
    after = Retriever.from_pretrained(str(folder / "retriever")).model.state_dict()
    frozen = "bert.embeddings.word_embeddings.weight"
    assert torch.equal(learned[frozen], after[frozen])  # judged pairs went on from this one
    assert not torch.equal(learned["classifier.weight"], after["classifier.weight"])


@pytest.mark.parametrize("is_bfloat16", [False, True])
def test_a_rounds_retriever_scores_as_it_is_trained(is_bfloat16, config, copy):
    words = ("--retriever.bf16", "true", "--retriever.use_cpu", "true") if is_bfloat16 else ()
    run = build_run(config, copy, *words)
    retriever = run.judge_at(run.round_folder(0) / "retriever")
    plain = Retriever.from_pretrained(str(run.round_folder(0) / "retriever"))
    dev = run.dataset.pairs("dev")
    pairs = dev["query"].tolist(), dev["document"].tolist()
    assert np.array_equal(retriever.score(*pairs), plain.score(*pairs)) != is_bfloat16
    assert retriever.score(*pairs) == pytest.approx(plain.score(*pairs), abs=0.05)


def test_the_ensemble_needs_dev_pairs_of_both_kinds(shop, tmp_path):
    data = shutil.copytree(shop, tmp_path / "beir")
    dev = pd.read_csv(data / "qrels" / "dev.tsv", sep="\t")
    dev[dev["score"] > 0].to_csv(data / "qrels" / "dev.tsv", sep="\t", index=False)
    settings = {"dev_metric": "f1", "teacher": "ensemble"}
    config = write_loop_config(tmp_path / "run.yaml", data, **settings)
    with pytest.raises(UserError, match="`teacher: ensemble` is weighed on dev pairs"):
        build_run(config, tmp_path / "run")


def test_pairs_run_with_full_fine_tuning_and_a_high_seed(tmp_path):
    # A thousand times a date is past NumPy's largest seed.
    data = write_pairs(tmp_path / "pairs")
    config = write_loop_config(tmp_path / "run.yaml", data, "pairs", dev_metric="pr_auc")
    words = ["--seed", "20261130", "--generator.lora_rank", "0", "--max_dev_drop", "1"]
    run_main("train_adversarial", "--config", config, "--output_dir", tmp_path / "run", *words)
    metrics = read(tmp_path / "run")
    assert metrics["best_round"] == 1
    assert "test" not in metrics
    assert (tmp_path / "run" / "round_01" / "generator" / "model.safetensors").is_file()
