"""The benchmarks' own arithmetic; what they measure is no test's business."""

import importlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"
WORKS = ("rl_step", "write_queries", "score_pairs", "train_retriever", "search", "load_data")


@pytest.fixture
def load(monkeypatch):
    """Return a function that imports a script of benchmarks/, which is no package."""
    monkeypatch.syspath_prepend(str(FOLDER))
    before = set(sys.modules)
    yield importlib.import_module
    for name in set(sys.modules) - before:
        if str(FOLDER) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def work(tmp_path, **told):
    """Return a work of two contestants, of which `told` says what each prints."""
    script = tmp_path / "contestant.py"
    script.write_text(f"import json, sys\nprint(json.dumps({told!r}[sys.argv[1]]))\n")
    return SimpleNamespace(
        __name__="work", __file__=str(script), OURS="ours", UNIT="pairs", TOLERANCE=0.01,
        CONTESTANTS={"ours": "project", "theirs": "project"}, GOALS={"theirs": 1.5},
    )  # fmt: skip


def run_of(seconds, check=(1.0, 2.0)):
    return {"units": 12, "seconds": seconds, "check": list(check), "peak_memory_mib": 100.0}


def test_rates_are_medians_and_the_ratio_is_ours_over_theirs(load, tmp_path, capsys):
    run = load("run")
    both = work(tmp_path, ours=run_of([2.0, 1.0, 9.0]), theirs=run_of([4.0]))
    result = run.measure(both, tmp_path, {}, rounds=2)["contestants"]
    assert result["ours"]["rate"] == 6 and result["theirs"]["rate"] == 3  # 12 / 2, 12 / 4
    assert result["ours"]["ratio"] == 1 and result["theirs"]["ratio"] == 2
    assert len(result["ours"]["seconds"]) == 6
    # Contestants take turns.
    turns = [line.split(": ")[1][:4] for line in capsys.readouterr().err.splitlines()]
    assert turns == ["ours", "thei", "ours", "thei"]


def test_a_stopped_run_goes_on_behind_the_works_that_it_measured(load, tmp_path, monkeypatch):
    run, output, seen = load("run"), tmp_path / "results.json", []

    def measured_work(name, *_):
        seen.append(name)
        if len(seen) == 2:
            raise KeyboardInterrupt
        rows = {"agr_trl": {"rate": 1.0, "ratio": 1.0, "goal": None, "peak_memory_mib": 1.0}}
        return {"unit": "pairs", "sizes": {}, "contestants": rows}

    monkeypatch.setattr(run, "write_inputs", lambda *_, **__: None)
    monkeypatch.setattr(run, "measured_work", measured_work)
    words = ["run.py", "--only", "search,load_data", "--output", str(output)]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(KeyboardInterrupt):
        run.main()
    assert list(json.loads(output.read_text())["works"]) == ["search"]
    run.main()
    assert seen == ["search", "load_data", "load_data"]
    assert list(json.loads(output.read_text())["works"]) == ["search", "load_data"]
    monkeypatch.setattr(sys, "argv", [*words, "--quick"])
    with pytest.raises(SystemExit):
        run.main()
    assert seen == ["search", "load_data", "load_data"]


def test_bfloat16_is_left_out_where_the_processor_is_slow_at_it(
    load, tmp_path, monkeypatch, capsys
):
    import torch

    run = load("run")
    both = work(tmp_path, ours=run_of([1.0]), theirs=run_of([2.0]), short=run_of([0.5]))
    both.CONTESTANTS["short"], both.BFLOAT16 = "project", "short"
    for rate, expected in ((0.5, ["ours", "theirs"]), (2.0, ["ours", "theirs", "short"])):
        speeds = {torch.float32: 1.0, torch.bfloat16: rate}
        monkeypatch.setattr(run, "matrix_speed", lambda *_, dtype=torch.float32, s=speeds: s[dtype])
        assert list(run.measure(both, tmp_path, {}, rounds=1)["contestants"]) == expected
        assert ("slow at bfloat16" in capsys.readouterr().err) == (rate < 1)


def test_other_results_end_the_run(load, tmp_path):
    both = work(tmp_path, ours=run_of([1.0]), theirs=run_of([1.0], check=(1.0, 2.02)))
    with pytest.raises(SystemExit, match="theirs gives other results"):
        load("run").measure(both, tmp_path, {}, rounds=1)


def test_every_work_has_goals_and_quick_sizes(load):
    assert load("run").WORKS == WORKS
    for name in WORKS:
        module = load(name)
        ours = {module.OURS, getattr(module, "BFLOAT16", module.OURS)}
        assert set(module.GOALS) == set(module.CONTESTANTS) - ours
        assert set(module.QUICK) == set(module.SIZES)
        assert set(module.CONTESTANTS.values()) <= {"project", *load("environments").PEERS}


def test_least_operations_by_hand(load):
    # Encoder: 6 layers of 4 * 512^2 + 2 * 512 * 2048 weights are 18,874,368, and the decoder's keys
    # and values of the product 6 * 2 * 512^2 = 3,145,728; 128 tokens, 2 operations, 3 passes:
    # 16,911,433,728. Decoder: 6 * (6 * 512^2 + 2 * 512 * 2048) = 22,020,096 weights in 4 passes and
    # 512 * 32128 = 16,449,536 of the head in 3; 8 queries of 16 tokens, 2 operations:
    # 35,181,821,952. MiniLM: 5 layers of 4 * 384^2 + 2 * 384 * 1536 = 1,769,472 and 2 * 384^2 =
    # 294,912 of the last for 147 tokens, the other 1,474,560 for one; 8 pairs, 2 operations:
    # 21,526,216,704.
    assert load("rl_step").least_operations(1) == 16_911_433_728 + 35_181_821_952 + 21_526_216_704


def test_least_operations_on_a_gpu_by_hand(load):
    # T5: 12 layers of 4 * 768^2 + 2 * 768 * 3072 weights and the decoder's 2 * 768^2 of keys and
    # values are 99,090,432; 16 products of 128 tokens, 2 operations, 3 passes: 1,217,623,228,416.
    # Decoder: 12 * (6 * 768^2 + 2 * 768 * 3072) = 99,090,432 weights in 4 passes and 768 * 32128 =
    # 24,674,304 of the head in 3; 256 queries of 16 tokens: 3,853,390,970,880. BERT: 23 layers of
    # 12 * 1024^2 and 2 * 1024^2 of the last for 147 tokens, 10 * 1024^2 for one: 42,861,592,576 a
    # pair, 256 pairs, 2 operations.
    gpu_step = load("gpu_step")
    scorer = 2 * 256 * 42_861_592_576
    assert gpu_step.least_operations() == 1_217_623_228_416 + 3_853_390_970_880 + scorer
    assert gpu_step.word_tokenizer()("w0 w1", "w2")["input_ids"] == [3, 4, 5, 1, 6, 1]


def test_works_on_a_large_catalogue_do_what_they_are_timed_for(load, tmp_path):
    large = load("large_catalogue")
    words = [f"word{n}" for n in range(40)]
    texts = [" ".join(words[n : n + 12]) for n in range(25)]
    (tmp_path / "catalogue.json").write_text(json.dumps({"texts": texts}))
    (tmp_path / "queries.json").write_text(json.dumps(["word3 word4"] * 30))
    large.write_beir(tmp_path)
    assert [large.WORKS[name](tmp_path)[0] for name in large.CATALOGUE_WORKS] == [25, 25, 25, 20]
    on_disk = sum(path.stat().st_size for path in (tmp_path / "index").iterdir())
    (tmp_path / "index").rename(tmp_path / "other")
    assert large.index(tmp_path)[2] == {"bytes_on_disk": on_disk}
    row = {"work": "read", "products": 2000, "units": 2000, "seconds": 0.5, "mib_more": 1.4}
    table = large.as_table([row | {"bytes_on_disk": 3e6}])
    assert table.splitlines()[-1] == "| read | 2,000 | 0.250 | 1 | bytes_on_disk 3,000,000.00 |"


def test_inputs_are_pairs_that_can_be_learned(load, tmp_path):
    import numpy as np

    pairs = load("inputs")._pairs(np.random.default_rng(0), ["a b c", "d e f"], 200)
    assert len(json.loads(json.dumps(pairs))) == 200
    for query, document, label in pairs:
        assert (set(query.split()) <= set(document.split())) == bool(label)
