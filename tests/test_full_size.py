"""The WANDS settings on data of WANDS' real size, with tiny models and two steps."""

import importlib.util
import json

import pandas as pd
import pytest
from toy_runs import RECIPES, ROOT, as_words, run_main

TINY = {"max_steps": 2, "bf16": False, "logging_steps": 1, "dataloader_pin_memory": False}
NO_SAVING = {"eval_strategy": "no", "save_strategy": "no"}
NEW_RETRIEVER = {
    "retriever_name_or_path": "new",
    "new_retriever_width": 32,
    "new_retriever_layers": 1,
    "new_retriever_steps": 0,
    "max_pair_tokens": 64,
}
NEW_GENERATOR = {
    "generator_name_or_path": "new",
    "new_generator_width": 32,
    "new_generator_layers": 1,
    "new_vocabulary_size": 2000,
}
REWARD = {"relevance_model": "lsa", "min_relevance": 0.0}


@pytest.fixture(scope="module")
def wands(tmp_path_factory):
    script = ROOT / "benchmarks" / "make_full_size_wands.py"
    spec = importlib.util.spec_from_file_location("make_full_size_wands", script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    folder = tmp_path_factory.mktemp("full") / "wands"
    module.write_full_size_wands(folder)
    return folder


def run(name, wands, output, *words):
    config = RECIPES / "wands" / f"{name}.yaml"
    paths = [f"--dataset_path={wands}", f"--output_dir={output}"]
    run_main(name, "--config", config, *paths, *words)
    return json.loads((output / "metrics.json").read_text())


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_stages(wands, tmp_path):
    # Steps of evaluation and saving stay as set: with two steps the last one evaluates.
    retriever = as_words(TINY | NEW_RETRIEVER | {"per_device_eval_batch_size": 512})
    metrics = run("train_retriever", wands, tmp_path / "retriever", *retriever)
    assert metrics["dev"]["queries"] == 96  # a fifth of 480
    assert metrics["dev"]["pairs"] > 40_000
    run("warm_up_generator", wands, tmp_path / "warm", *as_words(TINY | NEW_GENERATOR))
    paths = {
        "retriever_name_or_path": tmp_path / "retriever" / "retriever",
        "generator_name_or_path": tmp_path / "warm" / "generator",
    }
    run_main(
        "train_generator", "--config", RECIPES / "wands" / "train_generator.yaml",
        f"--dataset_path={wands}", f"--output_dir={tmp_path / 'generator'}",
        *as_words(TINY | REWARD | paths),
    )  # fmt: skip
    assert (tmp_path / "generator" / "generator" / "adapter_config.json").is_file()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_adversarial_run(wands, tmp_path):
    words = [
        *as_words({"rounds": 1, "products_per_round": 4_000, "queries_per_product": 2}),
        *as_words(
            TINY | NEW_RETRIEVER | NO_SAVING
            | {"load_best_model_at_end": False, "early_stopping_patience": 0,
               "per_device_eval_batch_size": 512},
            "retriever",
        ),
        *as_words(TINY | NEW_GENERATOR | NO_SAVING, "warm_up"),
        *as_words(TINY, "generator"),
        *as_words(REWARD, "reward"),
    ]  # fmt: skip
    metrics = run("train_adversarial", wands, tmp_path / "run", *words)
    assert set(metrics["test"]) == {"bm25", "cosine", "supervised", "adversarial"}
    assert metrics["test"]["adversarial"]["queries"] == 96
    queries = pd.read_parquet(tmp_path / "run" / "round_01" / "queries.parquet")
    assert len(queries) == 8_000
    assert (tmp_path / "run" / "report.html").is_file()
