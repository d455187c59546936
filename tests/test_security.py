"""What data and other people's files may not do; and tokens, which no file or output holds."""

import ast
import logging
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest
from html_pages import Page
from hub_server import TOKEN, hub_server
from toy_runs import (
    RECIPES,
    RETRIEVER,
    ROOT,
    as_words,
    build_run,
    load_recipe,
    run_main,
    subprocess_environment,
    write_beir,
    write_loop_config,
)

from agr_trl.runtime import run_recipe, start
from agr_trl.terminal import terminal_text

SOURCES = sorted(
    path
    for name in ("agr_trl", "recipes", "benchmarks")
    for path in (ROOT / name).rglob("*.py")
    if ".environments" not in path.parts  # of the peers that benchmarks/run.py compares with
)
# What runs code that a file or a text brings along.
FORBIDDEN_MODULES = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "runpy"}
FORBIDDEN_CALLS = {
    *("eval", "exec", "compile", "__import__", "os.system", "os.popen", "torch.load"),
    *("pd.read_pickle", "yaml.load", "yaml.load_all", "yaml.unsafe_load", "yaml.full_load"),
}
# A cell that begins with = is a formula to a spreadsheet; so no data's texts are written as CSV.
SPREADSHEETS = {"to_csv", "to_excel", "writer", "DictWriter"}
EVIL = (
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "[click](http://e.vil) ![see](http://e.vil/x.png)",
    "\x1b[31mred\x1b[0m\x1b]0;title\x07",
    "\u202etxet\u202c",
    "=HYPERLINK('http://e.vil')",
    "{{ 7 * 7 }} {% include 'report.html.j2' %}",
    "../../../../escaped",
)
EVIL_ID = "../../../../escaped/{}"


# --- Code -----------------------------------------------------------------------------------------


def calls_of(path: Path) -> list[tuple[str, ast.Call]]:
    """Return the calls of a source file, by the name that is called."""
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    return [(ast.unparse(node.func), node) for node in nodes if isinstance(node, ast.Call)]


def dangers(path: Path) -> list[str]:
    """Return the places of a source file that could run what a file or a text brings along."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = {
        name.split(".")[0]
        for node in ast.walk(tree)
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    found = sorted(names & FORBIDDEN_MODULES)
    for name, call in calls_of(path):
        options = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        if name in FORBIDDEN_CALLS:
            found.append(name)
        found += [
            f"{option}={value}"
            for option, value in options.items()
            if option in ("shell", "allow_pickle", "trust_remote_code") and value != "False"
        ]
    return found


def test_no_code_comes_from_files_or_texts():
    assert len(SOURCES) > 60
    assert {str(path): found for path in SOURCES if (found := dangers(path))} == {}


def test_the_search_for_dangers_finds_them(tmp_path):
    file = tmp_path / "bad.py"
    file.write_text(
        "import pickle\nfrom joblib import load\neval(x)\ntorch.load(p)\nyaml.load(f)\n"
        "np.load(p, allow_pickle=True)\nsubprocess.run(c, shell=True)\n"
        "AutoModel.from_pretrained(n, trust_remote_code=trust)\n"
    )
    assert dangers(file) == [
        *("joblib", "pickle", "eval", "torch.load", "yaml.load"),
        *("allow_pickle=True", "shell=True", "trust_remote_code=trust"),
    ]


def test_what_is_written_is_no_spreadsheet():
    writers = {
        path.name
        for path in SOURCES
        if path.parent.name != "benchmarks"
        and SPREADSHEETS & {name.split(".")[-1] for name, _ in calls_of(path)}
    }
    assert writers == {"demo.py"}  # the demo shop, whose words are ours


# --- Texts and ids of the data --------------------------------------------------------------------


def write_evil_shop(folder: Path) -> Path:
    """Write the toy shop with a hostile text in every title and query, and hostile ids."""
    write_beir(folder)
    for name, field in (("corpus.jsonl", "title"), ("queries.jsonl", "text")):
        rows = pd.read_json(folder / name, lines=True, dtype=str)
        evil = [EVIL[number % len(EVIL)] for number in range(len(rows))]
        rows[field] = rows[field] + " " + evil
        rows["_id"] = rows["_id"].map(EVIL_ID.format)
        rows.to_json(folder / name, orient="records", lines=True)
    for file in (folder / "qrels").glob("*.tsv"):
        rows = pd.read_csv(file, sep="\t")
        for column in ("query-id", "corpus-id"):
            rows[column] = rows[column].map(EVIL_ID.format)
        rows.to_csv(file, sep="\t", index=False)
    return folder


def tree(folder: Path) -> set[Path]:
    return {path.relative_to(folder) for path in folder.rglob("*")}


@pytest.fixture(scope="module")
def evil_run(tmp_path_factory):
    """A run on hostile data, in a folder so deep that what its ids name lies in `root`."""
    root = tmp_path_factory.mktemp("evil")
    work = root / "a" / "b" / "c"
    work.mkdir(parents=True)
    shop = write_evil_shop(work / "shop")
    config = write_loop_config(work / "run.yaml", shop)
    before = tree(root)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(work)
        run_main("train_adversarial", "--config", config, "--output_dir", "run")
    made = {path.parts[:4] for path in tree(root) - before}
    return work, made


def test_no_id_and_no_text_is_used_as_a_path(evil_run):
    work, made = evil_run
    assert made == {("a", "b", "c", "run")}
    queries = pd.read_parquet(work / "run" / "round_01" / "queries.parquet")
    assert queries["product_id"].str.startswith("../../../../escaped/p").all()


def test_a_report_of_hostile_data_shows_it_as_text(evil_run):
    work, _ = evil_run
    source = (work / "run" / "report.html").read_text(encoding="utf-8")
    page = Page(source)
    assert not {"script", "img", "a"} & set(page.tags)
    assert "<script>alert(1)</script>" in page.text and "{{ 7 * 7 }}" in page.text
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", source)


@pytest.mark.parametrize("job", ["search", "validate_data"])
def test_a_terminal_gets_no_order_from_the_data(job, evil_run, monkeypatch, capsys):
    work, _ = evil_run
    words = ["--dataset_format=beir", f"--dataset_path={work / 'shop'}"]
    if job == "search":
        words = ["red \x1b[5mchair", f"--retriever_name_or_path={work / 'run/retriever'}", *words]
    run_main(job, *words)
    shown = capsys.readouterr()
    assert "[U+001B][31mred" in shown.out
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", shown.out + shown.err)


def test_an_error_and_a_log_line_give_no_order_to_the_terminal(tmp_path, monkeypatch, capsys):
    file = tmp_path / "train.csv"
    file.write_text("query,doc\x1b[31mument,label\na,b,1\n")
    words = ["validate_data.py", "--dataset_format=pairs", f"--dataset_path={file}"]
    monkeypatch.setattr(sys, "argv", words)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    with pytest.raises(SystemExit):
        run_recipe(load_recipe("validate_data").main)
    assert "doc[U+001B][31mument" in capsys.readouterr().err.splitlines()[-1]
    assert terminal_text("a\x1b[0m\n\u202eb\tc") == "a[U+001B][0m\n[U+202E]b c"


def test_unexpected_errors_and_logs_show_neither_orders_nor_tokens(monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", "odd-secret")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", root.handlers[:])
    start(0)
    root.warning("%s\nforged line \x1b[31m", "hf_" + "k" * 34)
    try:
        raise RuntimeError("\x1b[31m Bearer odd-secret")
    except RuntimeError:
        sys.excepthook(*sys.exc_info())
    lines = capsys.readouterr().err.splitlines()
    assert any(line.endswith("root: *** forged line [U+001B][31m") for line in lines)
    assert any(line.startswith("Traceback") for line in lines)
    assert lines[-1] == "RuntimeError: [U+001B][31m Bearer ***"


# --- Tokens ---------------------------------------------------------------------------------------


def train_words(tmp_path: Path) -> list[str]:
    """Return the words of a stage that keeps its checkpoints."""
    saving = {"save_strategy": "steps", "save_steps": 1, "load_best_model_at_end": False}
    words = as_words(RETRIEVER | saving)
    words += ["--dataset_format=beir", f"--dataset_path={write_beir(tmp_path / 'beir')}"]
    return [*words, f"--output_dir={tmp_path / 'run'}", "--report_to=tensorboard"]


def files_below(folder: Path) -> list[tuple[str, bytes]]:
    return [(str(path), path.read_bytes()) for path in folder.rglob("*") if path.is_file()]


def test_a_token_in_the_settings_is_in_no_file_and_in_no_error(tmp_path, monkeypatch, capsys):
    words = train_words(tmp_path)
    run_main("train_retriever", *words, f"--hub_token={TOKEN}")
    files = files_below(tmp_path)
    names = Counter(Path(name).name.split(".")[0] for name, _ in files)
    assert names["training_args"] and names["events"]
    assert [name for name, content in files if TOKEN.encode() in content] == []
    monkeypatch.setattr(sys, "argv", ["train_retriever.py", f"--hub_tokn={TOKEN}", *words])
    with pytest.raises(SystemExit):
        run_recipe(load_recipe("train_retriever").main)
    error = capsys.readouterr().err
    assert "--hub_tokn" in error and TOKEN not in error


@pytest.mark.slow
def test_no_file_no_output_and_no_upload_holds_a_token(tmp_path):
    """A stage's pushes, one that fails and one that does not, with two tokens planted."""
    other = "hf_" + "planted" * 5  # in the environment; the setting goes before it
    words = [*train_words(tmp_path), "--push_to_hub", "--hub_model_id=user/toy"]
    outputs = []
    with hub_server() as hub:
        environment = subprocess_environment(
            HF_ENDPOINT=hub.url, HF_HOME=str(tmp_path / "home"), HF_HUB_OFFLINE="0",
            HF_HUB_DISABLE_XET="1", HF_TOKEN=other, ACCELERATE_USE_CPU="true",
        )  # fmt: skip
        for more, status in (([], 2), ([f"--hub_token={TOKEN}"], 0)):
            done = subprocess.run(
                [sys.executable, RECIPES / "train_retriever.py", *words, *more],
                cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300,
            )  # fmt: skip
            outputs += [done.stdout, done.stderr]
            assert done.returncode == status, done.stderr[-2000:]
        uploaded = [*hub.all_contents(), *((f"body {n}", b) for n, b in enumerate(hub.bodies))]
    assert "the Hub answered 401" in outputs[1] and len(uploaded) > 5
    shown = [(f"output {n}", text.encode()) for n, text in enumerate(outputs)]
    for name, content in [*files_below(tmp_path), *uploaded, *shown]:
        assert TOKEN.encode() not in content and other.encode() not in content, name


def test_a_stage_of_a_loop_takes_no_token(tmp_path):
    config = write_loop_config(tmp_path / "run.yaml", write_beir(tmp_path / "beir"))
    with pytest.raises(ValueError, match=r"`generator.hub_token` cannot be set for one stage"):
        build_run(config, tmp_path / "run", f"--generator.hub_token={TOKEN}")
