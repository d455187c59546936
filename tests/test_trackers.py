"""Trackers: numbers and queries of real runs, read back from where the trackers keep them."""

import io
import json
import sqlite3

import pytest
import yaml
from toy_runs import (
    GENERATOR,
    RETRIEVER,
    REWARD,
    WARM_UP,
    as_words,
    build_run,
    load_recipe,
    run_main,
    write_beir,
    write_loop_config,
)

from agr_trl import terminal
from agr_trl.config import parse_recipe, tracked_name
from agr_trl.errors import UserError
from agr_trl.terminal import progress, shows_progress
from agr_trl.trackers import completions_table

REPORT = {"report_to": ["tensorboard", "trackio"], "project": "toy"}
NUMBERS = {"loss", "reward", "rewards/retriever_loss/mean", "rewards/relevance/mean", "kl"}


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    return write_beir(tmp_path_factory.mktemp("shop") / "beir")


@pytest.fixture
def trackio(tmp_path, monkeypatch):
    """Trackio with a store of the test's own; it reads TRACKIO_DIR once, when it is imported."""
    trackio = pytest.importorskip("trackio", reason="the trackers extra is not installed")
    for part in (trackio, trackio.utils, trackio.sqlite_storage):
        monkeypatch.setattr(part, "TRACKIO_DIR", tmp_path / "trackio")
    yield trackio
    if trackio.context_vars.current_run.get() is not None:
        trackio.finish()


def trackio_logs(tmp_path):
    """Return run name -> what was logged, in order; tokens must not be among the settings."""
    with sqlite3.connect(tmp_path / "trackio" / "toy.db") as store:
        rows = store.execute("SELECT run_name, metrics FROM metrics ORDER BY id").fetchall()
        settings = store.execute("SELECT config FROM configs").fetchall()
    assert settings and not any(b"hf_secret" in bytes(text) for (text,) in settings)
    logs = {}
    for name, metrics in rows:
        logs.setdefault(name, []).append(json.loads(metrics))
    return logs


def tensorboard_logs(folder):
    """Return tag -> values of the numbers, and of the texts, in a folder of TensorBoard's files."""
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator",
        reason="the trackers extra is not installed",
    )
    numbers, texts = {}, {}
    for file in sorted(folder.rglob("events*")):  # named by time
        read = accumulator.EventAccumulator(str(file)).Reload()
        for tag in read.Tags()["scalars"]:
            numbers.setdefault(tag, []).extend(event.value for event in read.Scalars(tag))
        for tag in read.Tags()["tensors"]:
            found = [event.tensor_proto.string_val[0].decode() for event in read.Tensors(tag)]
            texts.setdefault(tag.removesuffix("/text_summary"), []).extend(found)
    return numbers, texts


def check_queries(table, rewards=("retriever_loss", "relevance", "accepted")):
    """A table of queries has prompts, texts and each reward."""
    header, rule, *rows = table.splitlines()
    columns = [cell.strip() for cell in header.strip("|").split("|")]
    assert columns == ["prompt", "completion", *rewards, "advantage"]
    assert set(rule) == set("| -") and len(rows) == 8  # a step's queries
    assert all(row.startswith("| Title: ") for row in rows)


def test_stages_report_numbers_and_queries(shop, tmp_path, trackio, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    data = ["--dataset_format=beir", f"--dataset_path={shop}", "--project=toy"]
    data += ["--report_to", *REPORT["report_to"]]
    words = [*as_words(RETRIEVER), "--hub_token=hf_secret", *data]
    run_main("train_retriever", *words, "--output_dir", tmp_path / "r")
    run_main("warm_up_generator", *as_words(WARM_UP), *data, "--output_dir", tmp_path / "w")
    run_main(
        "train_generator", *as_words(GENERATOR | REWARD), *data, "--log_completions",
        f"--retriever_name_or_path={tmp_path / 'r' / 'retriever'}",
        f"--generator_name_or_path={tmp_path / 'w' / 'generator'}",
        "--output_dir", tmp_path / "g",
    )  # fmt: skip

    logged = trackio_logs(tmp_path)
    names = {stage: tracked_name(str(tmp_path / stage)) for stage in "rwg"}
    assert logged.keys() == set(names.values())  # the evaluation at the end has no run of its own
    dev = [entry["eval/pr_auc"] for entry in logged[names["r"]] if "eval/pr_auc" in entry]
    metrics = json.loads((tmp_path / "r" / "metrics.json").read_text())
    assert [dev[0], dev[-1]] == [metrics[when]["eval_pr_auc"] for when in ("before", "after")]
    of_generator = {key for entry in logged[names["g"]] for key in entry}
    assert {f"train/{name}" for name in NUMBERS} <= of_generator
    tables = [e["completions"] for e in logged[names["g"]] if "completions" in e]
    assert tables[0]["_value"][0].keys() >= {"prompt", "completion", "relevance", "advantage"}

    numbers, _ = tensorboard_logs(tmp_path / "r")
    assert numbers["eval/pr_auc"] == pytest.approx(dev)
    numbers, texts = tensorboard_logs(tmp_path / "g")
    assert {f"train/{name}" for name in NUMBERS} <= numbers.keys()
    assert "hf_secret" not in "".join(texts["args"])
    check_queries(texts["completions"][0])
    first = tables[0]["_value"][0]
    assert f"| {first['prompt']} | {first['completion']} |" in texts["completions"][0]


def test_the_loop_reports_each_stage_apart(shop, tmp_path, trackio):
    config = write_loop_config(tmp_path / "run.yaml", shop)
    content = yaml.safe_load(config.read_text())
    for section in ("retriever", "warm_up", "generator"):
        content[section] |= REPORT
    content["generator"]["log_completions"] = True
    config.write_text(yaml.safe_dump(content))
    run = tmp_path / "run"
    build_run(config, run).run()
    stages = [f"round_0{n}/{name}" for n in (0, 1) for name in ("generator", "retriever")]
    logged = trackio_logs(tmp_path)
    assert sorted(logged) == [f"run/{stage}" for stage in stages]
    for stage in stages:
        number, name = stage.split("/")
        numbers, texts = tensorboard_logs(run / number / "tensorboard" / name)
        by_file = json.loads((run / number / f"{name}_log.json").read_text())
        assert numbers["train/loss"] == pytest.approx([e["loss"] for e in by_file if "loss" in e])
        assert ("completions" in texts) == (stage == "round_01/generator")
        assert not (run / number / f"{name}_checkpoints").exists()
        if "completions" in texts:
            check_queries(texts["completions"][0])


# --- Settings -----------------------------------------------------------------------------------


INSTALLED = "transformers.integrations.integration_utils.get_available_reporting_integrations"


def report_to(*words):
    sections = load_recipe("train_retriever").SECTIONS
    recipe = parse_recipe(sections, "recipes/train_retriever.py", ["--report_to", *words])
    return recipe[""].values["report_to"]


@pytest.mark.parametrize("name", ["tensorboard", "trackio", "wandb", "mlflow"])
def test_a_tracker_that_is_installed_is_accepted(name, monkeypatch):
    monkeypatch.setattr(INSTALLED, lambda: [name, "dvclive"])
    assert report_to(name) == name
    assert report_to(name, "dvclive") == [name, "dvclive"]
    assert report_to("none") == "none"


def test_other_trackers_are_refused_before_any_work(monkeypatch):
    monkeypatch.setattr(INSTALLED, lambda: [])
    with pytest.raises(UserError, match="`wandb`, which is not installed; run `pip install wandb`"):
        report_to("wandb")
    with pytest.raises(UserError, match=r"names `tensorbord`; known are none, .*tensorboard"):
        report_to("tensorbord")


def test_several_trackers_come_back_from_a_run_s_config(shop, tmp_path, monkeypatch):
    names = ["tensorboard", "wandb"]
    monkeypatch.setattr(INSTALLED, lambda: names)
    sections = load_recipe("train_retriever").SECTIONS
    recipe = parse_recipe(sections, "recipes/train_retriever.py", ["--report_to", *names])
    saved = tmp_path / "config.yaml"
    saved.write_text(yaml.safe_dump(recipe.resolved()))
    again = parse_recipe(sections, "recipes/train_retriever.py", ["--config", str(saved)])
    assert again[""].values["report_to"] == names


def test_a_training_is_named_after_its_folder(tmp_path):
    assert tracked_name("/runs/demo/round_01/retriever_checkpoints") == "demo/round_01/retriever"
    recipe = parse_recipe(load_recipe("train_retriever").SECTIONS, "recipes/train_retriever.py", [])
    assert recipe[""].build()[-1].run_name == "runs/demo_stages/train_retriever"
    assert recipe[""].build(run_name="mine")[-1].run_name == "mine"


def test_table_of_queries_worked_by_hand():
    logs = {
        "prompt": ["Title: a | b", "two\nlines"],
        "completion": ["desk", ""],
        "rewards": {"loss": [0.25, 1.0]},
        "advantages": [-0.5, 0.1234],
    }
    rows = [
        "| prompt | completion | loss | advantage |",
        "| --- | --- | --- | --- |",
        "| Title: a \\| b | desk | 0.250 | -0.500 |",
        "| two lines |  | 1.000 | 0.123 |",
    ]
    assert completions_table(logs, 5) == "\n".join(rows)
    assert completions_table(logs, 1) == "\n".join(rows[:3])


# --- Progress bars ------------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(
    ("stream", "rank", "is_shown"),
    [(Terminal, "0", True), (Terminal, "1", False), (io.StringIO, "0", False)],
)
def test_bars_on_the_main_process_s_terminal_alone(stream, rank, is_shown, monkeypatch):
    monkeypatch.setattr(terminal.sys, "stderr", stream())
    monkeypatch.setenv("RANK", rank)
    clock = iter(range(1000))
    monkeypatch.setattr("tqdm.std.time", lambda: next(clock))  # each look at it a second later
    assert shows_progress() == is_shown
    assert list(progress("abc", "reading letters")) == ["a", "b", "c"]
    assert ("reading letters" in terminal.sys.stderr.getvalue()) == is_shown
    args = parse_recipe(load_recipe("train_retriever").SECTIONS, "recipes/train_retriever.py", [])
    assert args[""].build()[-1].disable_tqdm != is_shown


def test_what_is_over_at_once_shows_no_bar(monkeypatch):
    monkeypatch.setattr(terminal.sys, "stderr", Terminal())
    monkeypatch.delenv("RANK", raising=False)
    assert list(progress(range(3), "counting")) == [0, 1, 2]
    assert "counting" not in terminal.sys.stderr.getvalue()
