"""Sweeps: what is tried, what counts, and that a stopped sweep goes on as if it had not stopped."""

import json

import pytest
import yaml
from toy_runs import load_recipe, write_beir, write_loop_config

from agr_trl import sweep
from agr_trl.adversarial import AdversarialRun
from agr_trl.config import parse_recipe
from agr_trl.errors import UserError

pytest.importorskip("optuna", reason="the sweep extra is not installed")

SPACE = {
    "generator.learning_rate": {"log": ["1e-4", 1e-2]},  # YAML reads 1e-4 as a text
    "generator.reward_weights": [[1, 1, 0], [2, 1, 0]],
    "reward.min_relevance": {"uniform": [0.0, 0.2]},
}


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    return write_beir(tmp_path_factory.mktemp("shop") / "beir")


@pytest.fixture
def recipe_of(shop, tmp_path):
    def build(folder, space=SPACE, **settings):
        config = write_loop_config(tmp_path / "sweep.yaml", shop, space=space, **settings)
        sections = load_recipe("sweep").SECTIONS
        words = ["--config", str(config), "--output_dir", str(tmp_path / folder)]
        return parse_recipe(sections, "recipes/sweep.py", words)

    return build


@pytest.fixture
def by_hand(monkeypatch):
    """Replace the trainings: a trial is worth its learning rate, and fails with weight 2."""
    calls = []

    def value(trial, objective):
        args = trial.recipe["generator"].values
        calls.append((trial.folder.name, args["learning_rate"], args["reward_weights"]))
        return None if args["reward_weights"][0] == 2 else args["learning_rate"]

    monkeypatch.setattr(sweep, "_value", value)
    monkeypatch.setattr(AdversarialRun, "run_rounds", lambda self, last: self.folder.mkdir())
    for name in sweep.SHARED:
        monkeypatch.setattr(AdversarialRun, name, None)
    return calls


def test_trials_best_first_and_failed_ones_last(recipe_of, by_hand, tmp_path):
    rows = sweep.run_sweep(recipe_of("a", trials=6))
    assert json.loads((tmp_path / "a" / "sweep.json").read_text())["trials"] == rows
    assert [folder for folder, *_ in by_hand] == [f"trial_00{n}" for n in range(6)]
    assert len({rate for _, rate, _ in by_hand}) == 6  # each trial is another one
    values = [row["value"] for row in rows if row["value"] is not None]
    assert 0 < len(values) < 6 and values == sorted(values, reverse=True)
    assert all(row["value"] is None for row in rows[len(values) :])
    for row in rows:
        settings = row["settings"]
        tried = by_hand[row["trial"]]
        assert tried[1:] == (
            settings["generator"]["learning_rate"],
            settings["generator"]["reward_weights"],
        )
        assert 1e-4 <= tried[1] <= 1e-2 and 0 <= settings["reward"]["min_relevance"] <= 0.2
    with pytest.raises(UserError, match=r"begun with other settings .*space"):
        sweep.run_sweep(recipe_of("a", {**SPACE, "reward.min_relevance": [0.1]}))


def test_a_stopped_sweep_goes_on_with_the_same_trials(recipe_of, by_hand, monkeypatch, tmp_path):
    rows = sweep.run_sweep(recipe_of("whole", trials=5))
    tried = by_hand[:]
    value = sweep._value

    def stop_in_the_third(trial, objective):
        if trial.folder.name == "trial_002" and len(by_hand) < 2 * 5:
            by_hand.append(None)
            raise KeyboardInterrupt
        return value(trial, objective)

    monkeypatch.setattr(AdversarialRun, "run_rounds", lambda self, last: None)
    monkeypatch.setattr(sweep, "_value", stop_in_the_third)
    with pytest.raises(KeyboardInterrupt):
        sweep.run_sweep(recipe_of("stopped", trials=5))
    monkeypatch.setattr(sweep, "_value", value)
    sweep.run_sweep(recipe_of("stopped", trials=4))
    assert sweep.run_sweep(recipe_of("stopped", trials=5)) == rows
    again = by_hand[5:]
    assert [*again[:2], *again[3:]] == tried and again[2] is None


def test_a_trial_whose_settings_cannot_be_fails_and_the_others_go_on(recipe_of, by_hand):
    space = {"generator.per_device_train_batch_size": [8, 4096]}  # more prompts than there are
    space["generator.reward_weights"] = [[1, 1, 0]]
    rows = sweep.run_sweep(recipe_of("a", space=space, trials=6))
    sizes = {
        row["settings"]["generator"]["per_device_train_batch_size"]: row["value"] for row in rows
    }
    assert sizes[4096] is None and sizes[8] is not None


def test_only_failures_are_an_error(recipe_of, by_hand):
    space = {"generator.reward_weights": [[2, 1, 0]]}
    with pytest.raises(UserError, match="all 2 trials failed"):
        sweep.run_sweep(recipe_of("a", space, trials=2))


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({}, "`space` is empty"),
        ({"generator.lerning_rate": [1]}, "unknown setting `--lerning_rate`"),
        ({"generator.learning_rate": [[1, 2]]}, "it must be one value"),
        ({"retriever.learning_rate": [1e-4]}, "trials share round 0"),
        ({"reward.relevance_model": ["lsa"]}, "without `reward.relevance_model`"),
        ({"reward.min_relevance": {"uniform": [0, 2]}}, "`min_relevance` is 2.0"),
        ({"generator.beta": {"log": [0, 1]}}, "with low above 0"),
        ({"generator.beta": {"uniform": [0.1]}}, "give {log"),
        ({"generator.beta": {"normal": [0, 1]}}, "give {log"),
        ({"generator.beta": 0.1}, "give {log"),
        ({"generator.beta": []}, "give {log"),
    ],
)
def test_spaces_that_are_refused(space, message, recipe_of, tmp_path):
    with pytest.raises(UserError, match=message):
        sweep.run_sweep(recipe_of("refused", space))
    assert not (tmp_path / "refused").exists()


def test_the_weighted_sum_is_no_objective_for_its_weights(recipe_of):
    with pytest.raises(UserError, match="the weighted sum"):
        sweep.run_sweep(recipe_of("a", objective="reward"))


def test_objective_of_the_generator_alone(recipe_of, tmp_path):
    objective = "rewards/retriever_loss/mean"
    space = {"generator.learning_rate": [1e-3], "reward.min_relevance": [0.0]}
    (row,) = sweep.run_sweep(recipe_of("a", space, trials=1, objective=objective))
    trial = tmp_path / "a" / "trial_000" / "round_01"
    assert not (trial / "retriever").exists()  # nor queries: the trial ended with the generator
    log = json.loads((trial / "generator_log.json").read_text())
    of_steps = [entry[objective] for entry in log if objective in entry]
    assert len(of_steps) == 2 and row["value"] == of_steps[1]  # the later half
    with pytest.raises(UserError, match=r"must be dev_metric or one of .*rewards/relevance/mean"):
        sweep.run_sweep(recipe_of("b", space, trials=1, objective="rewards/size"))


def test_objective_of_the_loop_and_the_trial_s_own_settings(recipe_of, tmp_path):
    space = {"generator.learning_rate": [2e-3]}
    (row,) = sweep.run_sweep(recipe_of("a", space, trials=1))
    trial = tmp_path / "a" / "trial_000"
    metrics = json.loads((trial / "round_01" / "metrics.json").read_text())
    assert row["value"] == metrics["dev"]["judged/ndcg@10"]
    # What the recipe recommends for a whole run is a configuration of train_adversarial.py.
    config = str(trial / "config.yaml")
    sections = load_recipe("train_adversarial").SECTIONS
    words = ["--config", config, "--output_dir", "other"]
    chosen = parse_recipe(sections, "recipes/train_adversarial.py", words)
    assert chosen["generator"].values["learning_rate"] == 2e-3
    assert "space" not in yaml.safe_load((trial / "config.yaml").read_text())
