"""Every command of recipes/, with tiny models and two steps."""

import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import yaml
from safetensors.torch import load_file, save_file
from toy_runs import (
    GENERATOR,
    RECIPES,
    RETRIEVER,
    REWARD,
    ROOT,
    WARM_UP,
    as_words,
    contents,
    load_recipe,
    run_main,
    subprocess_environment,
    write_beir,
    write_loop_config,
    write_pairs,
)
from transformers import AutoModelForSeq2SeqLM, AutoModelForSequenceClassification

from agr_trl import query_files, runtime
from agr_trl.config import parse_recipe
from agr_trl.errors import UserError
from agr_trl.evaluation import RANKING_METRICS
from agr_trl.stages import refuse_other_settings

STAGE_SETTINGS = {
    "train_retriever": RETRIEVER | {"load_best_model_at_end": False},
    "warm_up_generator": WARM_UP,
    "train_generator": GENERATOR | REWARD | {"round_trip_top_k": 0},
    "generate_queries": {"max_query_tokens": 5, "queries_per_product": 2},
}
PAIR_KEYS = {"roc_auc", "pr_auc", "f1", "accuracy", "log_loss", "ece"}


def tiny(name: str) -> list[str]:
    return as_words(STAGE_SETTINGS[name])


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    return write_beir(tmp_path_factory.mktemp("shop") / "beir")


@pytest.fixture(scope="module")
def stages(shop):
    """The four stages in a row on the toy shop, each from the output of those before."""
    folder = shop.parent / "stages"
    data = ["--dataset_format", "beir", "--dataset_path", str(shop)]
    retriever = f"--retriever_name_or_path={folder / 'train_retriever' / 'retriever'}"
    warm = f"--generator_name_or_path={folder / 'warm_up_generator' / 'generator'}"
    trained = f"--generator_name_or_path={folder / 'train_generator' / 'generator'}"
    for name, models in {
        "train_retriever": [],
        "warm_up_generator": [],
        "train_generator": [retriever, warm],
        "generate_queries": [trained],
    }.items():
        run_main(name, *data, *tiny(name), *models, "--output_dir", folder / name)
    return folder


@pytest.fixture
def trained(stages):
    return str(stages / "train_retriever" / "retriever")


def read(path: Path):
    return json.loads(path.read_text())


# --- The settings themselves --------------------------------------------------------------------


def test_every_yaml_is_parsed_by_its_recipe():
    paths = sorted(RECIPES.rglob("*.y*ml"))
    assert len(paths) == 21
    for path in paths:
        script = RECIPES / f"{path.stem}.py"
        recipe = parse_recipe(load_recipe(path.stem).SECTIONS, str(script), ["--config", str(path)])
        given = yaml.safe_load(path.read_text())
        assert recipe.resolved().keys() >= {key for key in given if key != "output_dir"}
        assert path.read_text().startswith("#")  # how to launch it
        assert f"recipes/{path.stem}.py" in path.read_text().split("\ndataset_format")[0]


def test_every_recipe_has_demo_settings_with_an_output_of_its_own():
    scripts = {path.stem for path in RECIPES.glob("*.py")}
    demo = {path.stem: yaml.safe_load(path.read_text()) for path in RECIPES.glob("demo/*.yaml")}
    assert demo.keys() <= scripts
    assert {name for name in scripts if (RECIPES / f"demo/{name}.yaml").is_file()} >= {
        "train_retriever", "warm_up_generator", "train_generator", "train_adversarial",
        "generate_queries", "evaluate_retriever", "search", "validate_data", "app",
        "sweep",
    }  # fmt: skip
    outputs = [values["output_dir"] for values in demo.values() if "output_dir" in values]
    assert len(outputs) == len(set(outputs))
    assert demo["train_adversarial"]["output_dir"] == "runs/demo"
    # No other metrics.json lies as high as the loop's; a comparison writes evidence.json instead.
    others = set(outputs) - {"runs/demo", demo["compare_arms"]["output_dir"]}
    assert all(path.startswith("runs/demo_stages/") for path in others)


# --- Stages -------------------------------------------------------------------------------------


def test_train_retriever_leaves_model_and_numbers(stages, trained):
    metrics = read(stages / "train_retriever" / "metrics.json")
    assert metrics.keys() == {"before", "after", "dev"}
    assert metrics["before"]["eval_loss"] != metrics["after"]["eval_loss"]
    assert not any("runtime" in name for name in metrics["after"])
    assert metrics["dev"].keys() >= PAIR_KEYS | {"blend_weight"}
    config = AutoModelForSequenceClassification.from_pretrained(trained).config
    assert config.problem_type == "multi_label_classification"


@pytest.mark.parametrize("name", ["train_retriever", "warm_up_generator", "train_generator"])
def test_a_stage_is_not_resumed_with_other_settings(name, stages, shop):
    before = contents(stages / name)
    words = ["--dataset_format", "beir", "--dataset_path", shop, *tiny(name)]
    if name == "train_generator":
        words.append(f"--retriever_name_or_path={stages}/train_retriever/retriever")
        words.append(f"--generator_name_or_path={stages}/warm_up_generator/generator")
    words += ["--output_dir", stages / name]
    with pytest.raises(UserError, match=r"begun with other settings \(.*learning_rate.*another"):
        run_main(name, *words, "--learning_rate", "0.5")
    assert contents(stages / name) == before


def test_a_setting_that_was_wrong_can_be_mended(shop, tmp_path):
    words = ["--dataset_format=beir", f"--dataset_path={shop}", *tiny("train_retriever")]
    words += [f"--output_dir={tmp_path / 'run'}", "--max_steps=1"]
    with pytest.raises(UserError, match="`frozen_layers` is 9; the retriever has"):
        run_main("train_retriever", *words, "--frozen_layers=9")
    run_main("train_retriever", *words)
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["frozen_layers"] == 0
    with pytest.raises(UserError, match="frozen_layers: 0 -> 1"):  # now there is work to lose
        run_main("train_retriever", *words, "--frozen_layers=1")


def test_a_setting_at_its_default_may_be_left_out_later(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text("seed: 3\nstage:\n  rate: 0.1\n")
    defaults = {"seed": 0, "stage": {"rate": 0.1}}
    refuse_other_settings(file, {"seed": 3}, defaults=defaults)
    with pytest.raises(UserError, match=r"stage.rate: 0\.1 -> 0\.2"):
        refuse_other_settings(file, {"seed": 3}, defaults=defaults | {"stage": {"rate": 0.2}})


@pytest.mark.parametrize("name", ["train_retriever", "warm_up_generator", "train_generator"])
def test_two_jobs_do_not_train_into_one_folder(name, stages, shop):
    own = {
        "train_generator": [
            f"--retriever_name_or_path={stages / 'train_retriever' / 'retriever'}",
            f"--generator_name_or_path={stages / 'warm_up_generator' / 'generator'}",
        ]
    }
    words = ["--dataset_format=beir", f"--dataset_path={shop}", *tiny(name), *own.get(name, [])]
    folder = stages / name
    with runtime.exclusive(folder), pytest.raises(UserError, match="another job is at work in"):
        run_main(name, *words, f"--output_dir={folder}")


def test_warm_up_leaves_a_generator(stages):
    metrics = read(stages / "warm_up_generator" / "metrics.json")
    assert metrics["after"]["eval_loss"] < metrics["before"]["eval_loss"]
    AutoModelForSeq2SeqLM.from_pretrained(stages / "warm_up_generator" / "generator")


def test_a_dev_split_without_relevant_pairs_stops_before_a_model_is_built(
    shop, tmp_path, monkeypatch
):
    copy = shutil.copytree(shop, tmp_path / "beir")
    dev = pd.read_csv(copy / "qrels" / "dev.tsv", sep="\t").assign(score=0)
    dev.to_csv(copy / "qrels" / "dev.tsv", sep="\t", index=False)
    words = ["--dataset_format=beir", f"--dataset_path={copy}", f"--output_dir={tmp_path / 'run'}"]
    monkeypatch.setattr("agr_trl.generator.build_small_t5", None)
    with pytest.raises(UserError, match="split 'dev' has no relevant pair"):
        run_main("warm_up_generator", *words, *tiny("warm_up_generator"))


def test_train_generator_leaves_an_adapter_and_its_log(stages):
    folder = stages / "train_generator"
    adapter = read(folder / "generator" / "adapter_config.json")
    assert adapter["task_type"] == "SEQ_2_SEQ_LM"
    log = read(folder / "generator_log.json")
    steps = [entry for entry in log if "reward" in entry]
    assert len(steps) == 2
    rewards = {key for key in steps[0] if re.fullmatch(r"rewards/.*/mean", key)}
    assert len(rewards) == 3  # loss of R, S, and acceptance beside them


def test_generate_queries_writes_every_product_and_reruns_nothing(stages, shop, tmp_path):
    folder = stages / "generate_queries"
    queries = pd.read_parquet(folder)  # the folder as a whole, settings beside the chunks
    assert len(queries) == 20 * 2
    assert {"product_id", "document", "query"} <= set(queries.columns)
    chunk = folder / "queries-00000.parquet"
    before = chunk.stat().st_mtime_ns
    words = [
        "--dataset_format=beir",
        *tiny("generate_queries"),
        f"--generator_name_or_path={stages / 'train_generator' / 'generator'}",
        f"--output_dir={folder}",
    ]
    run_main("generate_queries", *words, f"--dataset_path={shop}")
    assert chunk.stat().st_mtime_ns == before
    with pytest.raises(UserError, match="sampling_temperature"):
        run_main("generate_queries", *words, f"--dataset_path={shop}", "--sampling_temperature=0.5")
    other = write_beir(tmp_path / "other")
    corpus = other / "corpus.jsonl"
    corpus.write_text(corpus.read_text().replace("red oak chair", "red elm chair"))
    with pytest.raises(UserError, match="data_fingerprint"):
        run_main("generate_queries", *words, f"--dataset_path={other}")


def test_queries_of_two_generators_are_not_mixed(stages, shop, tmp_path):
    generator = shutil.copytree(stages / "train_generator" / "generator", tmp_path / "generator")
    words = ["--dataset_format=beir", f"--dataset_path={shop}", *tiny("generate_queries")]
    words += [f"--generator_name_or_path={generator}", f"--output_dir={tmp_path / 'queries'}"]
    run_main("generate_queries", *words)
    file = tmp_path / "queries" / "_settings.yaml"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(line for line in lines if not line.startswith("weights:")))
    run_main("generate_queries", *words)  # of an older version, which did not write that down
    weights = load_file(generator / "adapter_model.safetensors")
    save_file(
        {name: value + 1 for name, value in weights.items()},
        generator / "adapter_model.safetensors",
    )
    with pytest.raises(UserError, match=r"weights: [0-9a-f]+ -> "):
        run_main("generate_queries", *words)


def test_an_attack_goes_on_with_the_rank_of_its_adapter(stages, shop, tmp_path):
    words = ["--dataset_format=beir", f"--dataset_path={shop}", *tiny("train_generator")]
    words += [f"--retriever_name_or_path={stages / 'train_retriever' / 'retriever'}"]
    words += [f"--generator_name_or_path={stages / 'train_generator' / 'generator'}"]
    with pytest.raises(UserError, match=r"an adapter with `lora_rank` [0-9]+, not 3; set it to"):
        run_main("train_generator", *words, f"--output_dir={tmp_path}", "--lora_rank=3")


def test_disagreement_finds_negatives_where_only_relevant_products_are_judged(stages, tmp_path):
    shop = write_beir(tmp_path / "relevant_only")
    for file in (shop / "qrels").iterdir():
        lines = file.read_text().splitlines(keepends=True)
        file.write_text("".join(line for line in lines if not line.endswith("\t0\n")))
    run_main(
        "train_generator", "--dataset_format=beir", f"--dataset_path={shop}",
        *tiny("train_generator"), "--loss_reward=disagreement", f"--output_dir={tmp_path / 'run'}",
        f"--retriever_name_or_path={stages / 'train_retriever' / 'retriever'}",
        f"--generator_name_or_path={stages / 'warm_up_generator' / 'generator'}",
    )  # fmt: skip
    assert (tmp_path / "run" / "generator" / "adapter_model.safetensors").is_file()


def test_generate_queries_from_a_stream_and_in_shards(stages, tmp_path, monkeypatch):
    monkeypatch.setattr(query_files, "CHUNK_PRODUCTS", 3)
    shop = write_beir(tmp_path / "shop")
    words = ["--dataset_format=beir", f"--dataset_path={shop}", *tiny("generate_queries")]
    words += [f"--generator_name_or_path={stages / 'train_generator' / 'generator'}"]
    words += ["--products=10"]
    run_main("generate_queries", *words, f"--output_dir={tmp_path / 'whole'}")
    shards = [*words, "--streaming", "--num_shards=2", f"--output_dir={tmp_path / 'shards'}"]
    for index in (1, 0):
        run_main("generate_queries", *shards, f"--shard_index={index}")
    assert len(list((tmp_path / "shards").glob("*.parquet"))) == 4  # ten products in threes
    whole, sharded = (pd.read_parquet(tmp_path / name) for name in ("whole", "shards"))
    pd.testing.assert_frame_equal(whole, sharded)
    with pytest.raises(UserError, match="streaming: False -> True"):
        run_main("generate_queries", *words, "--streaming", f"--output_dir={tmp_path / 'whole'}")
    with pytest.raises(UserError, match="`shard_index` is 2; it must be from 0 to 1"):
        run_main("generate_queries", *shards, "--shard_index=2")
    with (shop / "corpus.jsonl").open("a") as corpus:
        corpus.write("\n")
    with pytest.raises(UserError, match="data_fingerprint"):
        run_main("generate_queries", *shards)


@pytest.mark.parametrize("name", ["bm25", "cosine", "retriever"])
def test_evaluate_retriever_writes_flat_json(name, trained, shop, tmp_path, capsys):
    output = tmp_path / "numbers" / "test.json"
    run_main(
        "evaluate_retriever", "--dataset_format=beir", f"--dataset_path={shop}", "--split=test",
        f"--retriever_name_or_path={trained if name == 'retriever' else name}",
        "--relevance_model=lsa", f"--output_file={output}",
    )  # fmt: skip
    assert "ndcg@10" in capsys.readouterr().out
    metrics = read(output)
    definition = metrics.pop("definition")
    assert "2^grade - 1" in json.dumps(definition)
    groups = {"judged", "bm25"} | ({"rerank"} if name != "bm25" else set())
    groups |= {"blend"} if name == "retriever" else set()
    expected = {f"{group}/{metric}" for group in groups for metric in RANKING_METRICS}
    # BM25's scores are no probabilities: it has the two areas alone.
    expected |= {"roc_auc", "pr_auc"} if name == "bm25" else PAIR_KEYS
    assert metrics.keys() >= expected | {"queries", "queries_without_relevant"}
    assert metrics["queries"] == 2
    assert metrics["queries_without_relevant"] == 0
    assert all(isinstance(value, int | float) for value in metrics.values())


def test_evaluate_retriever_on_pairs_has_pair_metrics_only(trained, tmp_path):
    pairs = write_pairs(tmp_path / "pairs")
    run_main(
        "evaluate_retriever", "--dataset_format=pairs", f"--dataset_path={pairs / 'dev.csv'}",
        "--split=test", f"--retriever_name_or_path={trained}", f"--output_file={tmp_path / 'o'}",
    )  # fmt: skip
    metrics = read(tmp_path / "o")
    assert metrics.keys() >= PAIR_KEYS
    assert not any("@" in name for name in metrics)


def test_validate_data_prints_and_writes_what_it_understood(shop, tmp_path, capsys):
    words = ["--dataset_format=beir", f"--dataset_path={shop}", "--relevant_grade=1"]
    run_main("validate_data", *words, f"--output_file={tmp_path / 'facts.json'}")
    printed = capsys.readouterr().out
    assert "products   20, 20 of them judged; 20 (100%) without a description" in printed
    facts = read(tmp_path / "facts.json")
    assert facts["source"] == {"format": "beir", "path": str(shop)}
    assert {split: numbers["judgements"] for split, numbers in facts["splits"].items()} == {
        "train": 5 * 20, "dev": 3 * 20, "test": 2 * 20,
    }  # fmt: skip
    assert facts["examples"]["prompts"][0] == "Title: red oak chair - Description:"
    assert all(problem in printed for problem in facts["problems"])


def test_validate_data_stops_at_broken_data(tmp_path):
    broken = write_beir(tmp_path / "broken")
    (broken / "qrels" / "dev.tsv").write_text("query-id\tcorpus-id\tscore\nq0\tp99\t1\n")
    with pytest.raises(UserError, match=r"dev.tsv, line 2: `product_id` is 'p99'"):
        run_main("validate_data", "--dataset_format=beir", f"--dataset_path={broken}")


def test_search_one_query(trained, shop, capsys):
    words = ["--dataset_format=beir", f"--dataset_path={shop}", "--top_k=3"]
    run_main("search", "red chair", *words, f"--retriever_name_or_path={trained}")
    lines = capsys.readouterr().out.strip().splitlines()
    assert len(lines) == 1 + 3
    run_main("search", "zzz", *words, f"--retriever_name_or_path={trained}")
    assert "no product shares a word with 'zzz'" in capsys.readouterr().out
    with pytest.raises(UserError, match="give a query"):
        run_main("search", "  ", *words, f"--retriever_name_or_path={trained}")


@pytest.mark.parametrize("setting", ["top_k=0", "top_k=-1", "candidates=-1"])
def test_a_search_for_no_product_is_refused_before_a_model_loads(setting, shop):
    name, value = setting.split("=")
    words = ["--dataset_format=beir", f"--dataset_path={shop}", f"--{setting}"]
    with pytest.raises(UserError, match=f"`{name}` is {value}; it must be at least 1"):
        run_main("search", "red chair", *words, "--retriever_name_or_path=runs/nowhere")


def test_a_query_that_is_not_utf_8_is_one_line(trained, shop, monkeypatch):
    words = ["--dataset_format=beir", f"--dataset_path={shop}"]
    latin = "café".encode("latin-1")
    with pytest.raises(UserError, match=r"the query 'caf\\udce9' is not UTF-8 text; type it in"):
        # As Python gives it on a command line, before the model is looked for.
        run_main("search", os.fsdecode(latin), *words, "--retriever_name_or_path=runs/nowhere")
    words += [f"--retriever_name_or_path={trained}", "--interactive"]
    for errors in ("strict", "surrogateescape"):  # the latter where the locale is C
        typed = io.TextIOWrapper(io.BytesIO(latin + b"\n"), encoding="utf-8", errors=errors)
        monkeypatch.setattr(sys, "stdin", typed)
        with pytest.raises(UserError, match=r"the query .*is not UTF-8 text"):
            run_main("search", *words)


def test_search_and_evaluation_share_an_index_on_disk(trained, shop, tmp_path, capsys):
    words = ["--dataset_format=beir", f"--dataset_path={shop}"]
    words += [f"--retriever_name_or_path={trained}"]
    on_disk = [*words, f"--index_dir={tmp_path / 'index'}"]
    printed = []
    for options in (words, on_disk, on_disk):
        run_main("search", "red chair", *options)
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1] == printed[2]
    for name, options in (("memory", words), ("disk", on_disk)):
        run_main("evaluate_retriever", *options, f"--output_file={tmp_path / name}")
    assert read(tmp_path / "memory") == read(tmp_path / "disk")
    other = write_beir(tmp_path / "other")
    corpus = (other / "corpus.jsonl").read_text().replace("red oak chair", "red elm chair")
    (other / "corpus.jsonl").write_text(corpus)
    with pytest.raises(UserError, match="of another catalogue"):
        run_main("search", "red chair", *on_disk, f"--dataset_path={other}")


def test_search_interactive_reads_until_an_empty_line(trained, shop, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("red chair\nblue lamp\n\nnever read\n"))
    run_main(
        "search", "--interactive", "--dataset_format=beir", f"--dataset_path={shop}", "--top_k=2",
        f"--retriever_name_or_path={trained}",
    )  # fmt: skip
    out = capsys.readouterr().out
    assert len(out.strip().splitlines()) == 2 * (1 + 2)
    assert sys.stdin.readline() == "never read\n"


def test_search_interactive_ends_where_the_input_ends(trained, shop, capsys, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stdin", Terminal("red chair\n"))  # and then Ctrl-D
    run_main(
        "search", "--interactive", "--dataset_format=beir", f"--dataset_path={shop}", "--top_k=9",
        f"--retriever_name_or_path={trained}",
    )  # fmt: skip
    assert "red oak chair" in capsys.readouterr().out


@pytest.mark.slow
def test_bare_demo_command_makes_the_missing_stages_first(tmp_path, monkeypatch):
    """`accelerate launch recipes/train_generator.py` in an empty folder, but for tiny overrides."""
    monkeypatch.chdir(tmp_path)
    made = []

    def run(command, **options):
        if command[0] == "git":
            return subprocess.run(command, **options)
        name = Path(command[1]).stem
        made.append(name)
        run_main(name, *tiny(name))
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(runtime, "subprocess", SimpleNamespace(run=run))
    run_main("train_generator", *tiny("train_generator"), "--prompts=16")
    assert made == ["train_retriever", "warm_up_generator"]
    stages = tmp_path / "runs" / "demo_stages"
    assert (stages / "train_generator" / "generator" / "adapter_config.json").is_file()
    run_main("generate_queries", *tiny("generate_queries"), "--products=5")
    assert made == ["train_retriever", "warm_up_generator"]  # nothing twice
    assert len(pd.read_parquet(stages / "generate_queries")) == 5 * 2


# --- As processes, as users start them ----------------------------------------------------------

LAUNCH = ["-m", "accelerate.commands.accelerate_cli", "launch"]
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]


def run_command(command: list[str], cwd: Path, stdin: str = "", **environment: str):
    result = subprocess.run(
        [sys.executable, *command],
        cwd=cwd,
        env=subprocess_environment(**environment),
        input=stdin,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return result


@pytest.mark.slow
def test_bare_commands_as_processes(tmp_path):
    """Each recipe from a folder without runs/, in the README's order: demo data, tiny models."""
    for name in ("train_retriever", "warm_up_generator", "train_generator", "generate_queries"):
        extra = ["--products=5"] if name == "generate_queries" else []
        launcher = LAUNCH if name == "train_generator" else []
        script = str(RECIPES / f"{name}.py")
        run_command([*launcher, script, *tiny(name), *extra], tmp_path)
    evaluated = run_command(
        [str(RECIPES / "evaluate_retriever.py"), "--output_file=test.json"], tmp_path
    )
    assert "judged" in evaluated.stdout
    assert read(tmp_path / "test.json").keys() >= {"judged/ndcg@10", "blend/ndcg@10", "pr_auc"}
    search = str(RECIPES / "search.py")
    found = run_command([search, "small velvet couch", "--top_k=2"], tmp_path)
    assert len(found.stdout.strip().splitlines()) == 3
    rounded = [search, "--interactive", "--top_k=2", "--retriever_bfloat16=true"]
    found = run_command(rounded, tmp_path, stdin="velvet couch\n\n")
    assert len(found.stdout.strip().splitlines()) == 3
    assert not list(tmp_path.glob("runs/*/metrics.json"))


@pytest.mark.slow
def test_user_errors_are_one_line_and_status_2(tmp_path):
    result = subprocess.run(
        [sys.executable, str(RECIPES / "search.py"), ""],
        cwd=tmp_path,
        env=subprocess_environment(),
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert result.returncode == 2
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("error: give a query")
    assert "Traceback" not in result.stderr


def train_generator_words(stages, shop, output_dir):
    return [
        "--dataset_format=beir", f"--dataset_path={shop}", *tiny("train_generator"),
        f"--retriever_name_or_path={stages / 'train_retriever' / 'retriever'}",
        f"--generator_name_or_path={stages / 'warm_up_generator' / 'generator'}",
        f"--output_dir={output_dir}",
    ]  # fmt: skip


@pytest.mark.slow
def test_train_generator_on_two_processes(stages, shop, tmp_path):
    words = train_generator_words(stages, shop, tmp_path / "run")
    command = [*TORCHRUN, str(RECIPES / "train_generator.py"), *words]
    result = run_command(command, tmp_path, ACCELERATE_USE_CPU="true")
    assert "2 process(es)" in result.stderr
    assert (tmp_path / "run" / "generator" / "adapter_config.json").is_file()
    log = [e for e in read(tmp_path / "run" / "generator_log.json") if "num_tokens" in e]
    alone = [
        e for e in read(stages / "train_generator" / "generator_log.json") if "num_tokens" in e
    ]
    # The tokens of both processes are counted: about twice those of one.
    assert log[-1]["num_tokens"] > 1.5 * alone[-1]["num_tokens"]


@pytest.mark.slow
def test_adversarial_run_on_two_processes(shop, tmp_path):
    config = write_loop_config(tmp_path / "run.yaml", shop)
    words = ["--config", str(config), "--output_dir", str(tmp_path / "run")]
    command = [*TORCHRUN, str(RECIPES / "train_adversarial.py"), *words]
    result = run_command(command, tmp_path, ACCELERATE_USE_CPU="true")
    assert "2 process(es)" in result.stderr
    folder = tmp_path / "run"
    assert {path.name for path in folder.iterdir()} == {
        ".lock", "config.yaml", "run.json", "timings.json", "metrics.json", "report.html",
        "retriever", "generator", "round_00", "round_01",
    }  # fmt: skip
    for number in (0, 1):
        assert len(pd.read_parquet(folder / f"round_{number:02d}" / "queries.parquet")) == 20
    before = (folder / "metrics.json").stat().st_mtime_ns
    run_command(command, tmp_path, ACCELERATE_USE_CPU="true")  # nothing to do, and nobody waits
    assert (folder / "metrics.json").stat().st_mtime_ns == before


@pytest.mark.slow
def test_accelerate_launch_with_the_cpu_config(stages, shop, tmp_path):
    words = train_generator_words(stages, shop, tmp_path / "run")
    config = str(ROOT / "accelerate_configs" / "cpu.yaml")
    launcher = [*LAUNCH, "--config_file", config]
    run_command([*launcher, str(RECIPES / "train_generator.py"), *words], tmp_path)
    assert (tmp_path / "run" / "generator" / "adapter_config.json").is_file()
