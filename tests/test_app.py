"""The app over a toy run: what it answers, its page in a browser, its Space on a Hub."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from urllib.error import URLError
from urllib.request import ProxyHandler, build_opener, urlopen

import gradio
import httpx
import pandas as pd
import pytest
import yaml
from browser import (
    DESKTOP,
    PHONE,
    errors,
    low_contrast,
    open_browser,
    overflows,
    requested_hosts,
    show_as,
)
from hub_server import TOKEN, hub_server
from huggingface_hub import ModelCard
from scipy.special import expit
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver import Keys
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait
from toy_runs import (
    QUERIES,
    RECIPES,
    grade,
    run_main,
    subprocess_environment,
    titles,
    write_beir,
    write_loop_config,
)

from agr_trl import app, app_page, hub
from agr_trl.app import FinishedRun, open_run, read_tables, table_contents
from agr_trl.errors import UserError

# What a catalogue may hold that a page must show and never do: markup, what gradio's templates
# evaluate, Markdown, text that reads backwards, a terminal's colours.
HOSTILE = (
    "red chair <script>window.hacked = 1</script><img src=x onerror='window.hacked=1'> "
    "${window.hacked=1} {{value}} [link](http://e.vil) \u202elamp \x1b[31m"
)
SCRIPTS = Path(__file__).parent / "scripts"


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    folder = write_beir(tmp_path_factory.mktemp("app") / "secret_beir")
    with (folder / "corpus.jsonl").open("a") as file:
        file.write(json.dumps({"_id": "evil", "title": HOSTILE, "text": HOSTILE}) + "\n")
    with (folder / "qrels" / "test.tsv").open("a") as file:
        file.write("q8\tevil\t2\n")  # "green chair"
    return folder


@pytest.fixture(scope="module")
def finished(shop):
    """A finished run of one adversarial round, kept whatever it scores."""
    settings = {"rounds": 1, "max_dev_drop": 1.0, "products_per_round": 21}
    config = write_loop_config(shop.parent / "run.yaml", shop, **settings)
    run_main("train_adversarial", "--config", config, "--output_dir", shop.parent / "run")
    return shop.parent / "run"


@pytest.fixture(scope="module")
def run(finished):
    return FinishedRun(finished)


# --- What it answers ----------------------------------------------------------------------------


@pytest.mark.parametrize("query", ["green chair", "  Green   CHAIR "])
def test_search_marks_the_grades_of_a_judged_query(run, query):
    found = run.search(query, blended=False)
    assert list(found) == ["bm25", "supervised", "adversarial"]
    for rows in found.values():
        assert [row["rank"] for row in rows] == list(range(1, len(rows) + 1))
        for row in rows:
            true = 2 if row["product_id"] == "evil" else grade("green chair", row["title"])
            assert (row["grade"], row["relevant"]) == (true, true > 0)
    # BM25's candidates are those with either word: 8 chairs, 3 more green things, the hostile one.
    bm25 = [row["product_id"] for row in found["bm25"]]
    assert len(bm25) == 10 and {row["grade"] for row in found["bm25"][:2]} == {2}
    assert run.judgements(query)["split"].unique().tolist() == ["test"]
    assert len(run.judgements(query)) == 21


def test_systems_rank_the_same_candidates_by_their_own_scores(run):
    names = {"supervised", "adversarial"}
    for blended in (False, True):
        found = run.search("blue lamp", blended)
        for name in names:
            scores = [row["score"] for row in found[name]]
            assert scores == sorted(scores, reverse=True)
    found = run.search("blue lamp", blended=False)
    documents = dict(zip(run.dataset.products["product_id"], run.dataset.documents, strict=True))
    order = [row["product_id"] for row in found["bm25"]]
    for name in names:
        for row in found[name]:
            score = run.retrievers[name].score(["blue lamp"], [documents[row["product_id"]]])
            assert row["score"] == pytest.approx(float(expit(score)[0]), abs=1e-5)
            if row["product_id"] in order:
                assert row["bm25_rank"] == order.index(row["product_id"]) + 1
            else:
                assert row["bm25_rank"] > 10


def test_search_for_what_nobody_judged_or_sells(run):
    found = run.search("blue chair lamp", blended=True)
    assert {row["grade"] for rows in found.values() for row in rows} == {None}
    assert run.search("zzz", blended=True) == {"bm25": [], "supervised": [], "adversarial": []}
    with pytest.raises(UserError, match="the query is blank"):
        run.search("  ", blended=True)


def test_example_queries_are_judged_ones_of_test(run):
    assert sorted(run.example_queries()) == sorted(QUERIES["test"])


def test_attack_looks_at_each_query_that_the_generator_writes(run, monkeypatch):
    position = titles().index("red oak chair")
    written = ["red chair", "desk lamp", "", "red chair", "zzz", "red oak chair chair"]

    def sample(model, tokenizer, prompts, settings, max_prompt_tokens):
        assert prompts == ["Title: red oak chair - Description:"]
        assert settings.queries_per_product == 6 and max_prompt_tokens == 24
        return [written]

    monkeypatch.setattr(app, "sample_queries", sample)
    rows = run.attack(position, 6)
    assert [row["query"] for row in rows] == ["red chair", "desk lamp", "", "zzz", written[5]]
    assert [row["times"] for row in rows] == [2, 1, 1, 1, 1]
    accepted = {row["query"]: row["verdict"] for row in rows}
    assert accepted["red chair"] == "accepted" and rows[0]["accepted"]
    assert accepted[""] == "no word in it" and not rows[2]["accepted"]
    assert accepted["red oak chair chair"] == "a word twice, or an unknown piece"
    top = run.run.index.top(["red chair"], 100)[0][0]
    assert rows[0]["ranks"]["bm25"] == top.tolist().index(position) + 1
    found = run._rankings("red chair", blended=False)["adversarial"]["product_id"].tolist()
    assert rows[0]["ranks"]["adversarial"] == found.index("p0") + 1
    nowhere = dict.fromkeys(("bm25", "supervised", "adversarial"))
    assert rows[1]["ranks"] == rows[2]["ranks"] == rows[3]["ranks"] == nowhere
    assert rows[0]["relevance"] == pytest.approx(
        run.run.relevance.score(["red chair"], ["red oak chair"])[0], abs=1e-6
    )
    assert rows[2]["relevance"] == 0
    p = run.retrievers["supervised"].score(["red chair"], ["red oak chair"])
    assert rows[0]["probabilities"]["supervised"] == pytest.approx(float(expit(p)[0]), abs=1e-5)


def test_example_queries_are_none_that_the_app_would_cut(run, monkeypatch):
    long = "white lamp " * 20  # 220 characters; the box takes 200
    queries = run.dataset.queries.replace({"query": {"white lamp": long}})
    monkeypatch.setattr(run, "dataset", replace(run.dataset, queries=queries))
    assert run.example_queries() == ["green chair"]
    queries = queries.replace({"query": {"green chair": long[:200].strip()}})
    monkeypatch.setattr(run, "dataset", replace(run.dataset, queries=queries))
    assert run.example_queries() == [long[:200].strip()]


@pytest.mark.parametrize(
    ("source", "best", "tokens"),
    [("adversarial", 1, 9), ("adversarial", 0, 24), ("warm_up", 1, 24)],
)
def test_attack_reads_as_much_of_a_product_as_the_generator_did(
    source, best, tokens, run, monkeypatch
):
    config = run.record.config | {"query_source": source}
    config["generator"] = config["generator"] | {"max_prompt_tokens": 9}  # the warm-up's is 24
    record = replace(run.record, config=config, metrics=run.record.metrics | {"best_round": best})
    monkeypatch.setattr(run, "record", record)
    given = []
    monkeypatch.setattr(app, "sample_queries", lambda *values: given.append(values[4]) or [["x"]])
    run.attack(0, 1)
    assert given == [tokens]


def test_attack_draws_from_the_generator_of_the_run(run):
    rows = run.attack(0, 6)
    assert sum(row["times"] for row in rows) == 6
    assert all(0 <= row["probabilities"]["adversarial"] <= 1 for row in rows)


def test_products_are_found_by_words_or_offered(run):
    found = run.find_products("green floor lamp")
    assert run.dataset.products["title"].iloc[found[0]] == "green floor lamp"
    assert run.find_products("zzz") == []
    assert run.find_products(" ") == list(range(21))


def test_browse_filters_and_pages(run, finished):
    files = [finished / f"round_{number:02d}" / "queries.parquet" for number in (0, 1)]
    tables = [pd.read_parquet(file) for file in files]
    everything = pd.concat(tables, ignore_index=True)
    rows, total = run.browse()
    assert total == len(everything) == 2 * 21 * 2 and len(rows) == 20
    assert [row["query"] for row in rows] == everything["query"].tolist()[:20]
    second, _ = run.browse(page=2)
    assert [row["query"] for row in second] == everything["query"].tolist()[20:40]
    assert len(run.browse(page=5)[0]) == 4 and run.browse(page=6) == ([], 84)
    assert run.browse(page=-5)[0] == rows
    assert run.browse(round_number=1)[1] == len(tables[1])
    accepted, total = run.browse(reasons=[""])
    assert total == everything["accepted"].sum()
    assert {row["verdict"] for row in accepted} <= {"accepted"}
    for text in ("chair", "("):  # a bracket is no pattern here
        columns = [everything[name].str.contains(text, regex=False) for name in ("query", "title")]
        assert run.browse(text=f" {text.upper()} ")[1] == (columns[0] | columns[1]).sum() > 0
    assert set(run.verdicts()) == set(everything["reason"])


# --- What it refuses ----------------------------------------------------------------------------


def test_only_a_whole_finished_run_is_shown(tmp_path, finished):
    with pytest.raises(UserError, match=r"has no metrics\.json"):
        open_run(tmp_path / "none")
    copy = shutil.copytree(finished, tmp_path / "copy")
    shutil.rmtree(copy / "round_00" / "retriever")
    with pytest.raises(UserError, match=r"round_00/retriever` holds no model"):
        open_run(copy)


def test_a_run_of_a_gpu_opens_on_any_machine(tmp_path, finished):
    copy = shutil.copytree(finished, tmp_path / "copy")
    config = yaml.safe_load((copy / "config.yaml").read_text())
    for section in ("retriever", "warm_up", "generator"):
        config[section] |= {"bf16": True, "tf32": True, "bf16_full_eval": True}
        config[section]["report_to"] = "clearml"  # not installed
    # Eight processes had whole groups.
    sizes = {"per_device_train_batch_size": 1, "num_generations": 8, "generation_batch_size": 8}
    config["generator"] |= sizes
    config["lesson_averaging"] = 0.5
    config["retriever"] |= {"retriever_name_or_path": "here/no/more"}
    (copy / "config.yaml").write_text(yaml.safe_dump(config))
    assert len(open_run(copy)[1].dataset.products) == 21


def test_other_data_are_refused_and_moved_data_are_found(tmp_path, finished, shop):
    moved = shutil.copytree(shop, tmp_path / "moved")
    copy = shutil.copytree(finished, tmp_path / "copy")
    config = yaml.safe_load((copy / "config.yaml").read_text())
    (copy / "config.yaml").write_text(yaml.safe_dump(config | {"dataset_path": "gone"}))
    with pytest.raises(UserError, match="gone"):
        open_run(copy)
    assert len(open_run(copy, str(moved))[1].dataset.products) == 21
    corpus = moved / "corpus.jsonl"
    corpus.write_text(corpus.read_text().replace("red oak chair", "red elm chair"))
    with pytest.raises(UserError, match="was made with other data; give its data"):
        open_run(copy, str(moved))


def test_without_gradio_the_extra_is_named(finished, monkeypatch):
    monkeypatch.setattr(app, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=re.escape('pip install -e ".[app]"')):
        run_main("app", finished)
    with pytest.raises(UserError, match=re.escape('pip install -e ".[app]"')):
        run_main("app", finished, "--push_to_space", "user/toy")


def test_the_bare_command_serves_the_demo_run_to_this_machine_alone(monkeypatch):
    calls = []
    monkeypatch.setattr(app, "serve", lambda *settings: calls.append(settings))
    run_main("app")
    run_main("app", "runs/own", "--host=0.0.0.0", "--port=80")
    assert calls == [
        (Path("runs/demo"), None, "127.0.0.1", 7860),
        (Path("runs/own"), None, "0.0.0.0", 80),
    ]


def test_a_port_that_is_taken_is_one_line(finished):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"cannot serve the app: .*{port}"):
            run_main("app", finished, f"--port={port}")


@pytest.mark.parametrize(
    ("host", "port", "says"),
    [
        ("127.0.0.1", 70_000, "`port` is 70000; it must be from 1 to 65535"),
        ("127.0.0.1", 0, "`port` is 0; it must be from 1 to 65535"),
        ("192.0.2.1", 7_861, "host `192.0.2.1`, port 7861: .*; give another --host or --port"),
        ("no..name", 7_861, "host `no..name`, port 7861: .*; give another --host or --port"),
    ],
)
def test_an_address_that_cannot_be_served_on_is_named_before_a_model_loads(host, port, says):
    with pytest.raises(UserError, match=says):
        run_main("app", "runs/nowhere", f"--host={host}", f"--port={port}")


def test_a_name_with_one_address_of_this_machine_is_served_on(monkeypatch):
    """As `localhost` where it names an IPv6 address too and the machine has none."""
    port = free_port()
    places = [
        (socket.AF_INET, socket.SOCK_STREAM, 0, "", (host, port))
        for host in ("192.0.2.1", "127.0.0.1")
    ]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: places)
    app.check_address("localhost", port)


def test_the_page_is_served_where_the_web_is_behind_a_proxy(run, monkeypatch):
    proxy = f"http://127.0.0.1:{free_port()}"  # nobody is there
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, proxy)
    monkeypatch.setenv("NO_PROXY", "intranet.example")
    monkeypatch.setenv("no_proxy", "")
    port, asked = free_port(), []
    monkeypatch.setattr(gradio.Blocks, "block_thread", lambda page: asked.append(page.local_url))
    try:
        app_page.launch(run, "127.0.0.1", port)
        assert asked == [f"http://127.0.0.1:{port}/"]
        direct = build_opener(ProxyHandler({}))
        assert "green chair" in direct.open(asked[0], timeout=10).read().decode()
    finally:
        gradio.close_all()
    assert os.environ["NO_PROXY"] == "intranet.example,127.0.0.1,localhost"


def test_what_gradio_cannot_serve_is_one_line(run, monkeypatch):
    for error in (OSError("no port"), ValueError("no localhost"), httpx.ConnectError("refused")):

        def fail(page, error=error, **settings):
            raise error

        monkeypatch.setattr(gradio.Blocks, "launch", fail)
        with pytest.raises(UserError, match=f"host `127.0.0.1`, port 7861: {error}; give another"):
            app_page.launch(run, "127.0.0.1", 7_861)


def test_a_data_set_comes_back_from_its_tables(run, tmp_path):
    assert read_tables(tmp_path) is None
    for name, table in table_contents(run.dataset).items():
        table.to_parquet(tmp_path / f"{name}.parquet", index=False)
    again = read_tables(tmp_path)
    assert again.documents == run.dataset.documents
    assert (again.has_ids, again.max_grade) == (True, 2)
    for split in ("train", "dev", "test"):
        pd.testing.assert_frame_equal(again.pairs(split), run.dataset.pairs(split))


# --- The page in a browser ----------------------------------------------------------------------


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def served(command, port, cwd, **environment):
    """Run a command that serves the app; yields its address when it answers."""
    log = cwd / "app.log"
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, *map(str, command)],
            cwd=cwd,
            env=subprocess_environment(**environment),
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    try:
        address = f"http://127.0.0.1:{port}/"
        for _ in range(240):
            assert process.poll() is None, log.read_text()[-3000:]
            try:
                urlopen(address, timeout=5).close()
                break
            except URLError:
                time.sleep(0.5)
        yield address
    finally:
        process.terminate()
        process.wait(timeout=30)


# What gradio's client says when a page is left while it waits for an answer.
LEFT = ("AbortError: signal is aborted", '"Connection errored out. "')


class AppPage:
    """The app as a reader drives it; `complaints` are the errors of the pages that were left."""

    def __init__(self, browser, address):
        self.browser, self.address = browser, address
        self.complaints = []

    def open(self, width=DESKTOP, is_dark=False):
        self.complaints += errors(self.browser)
        show_as(self.browser, width, is_dark=is_dark)
        self.browser.get(self.address)
        self.wait("#query textarea, #query input")
        said = errors(self.browser)
        self.complaints += [text for text in said if not any(left in text for left in LEFT)]
        return self

    def until(self, look):
        """Return what `look` returns as soon as it is something; what is drawn anew is no error."""
        patient = WebDriverWait(
            self.browser, 60, ignored_exceptions=[StaleElementReferenceException]
        )
        return patient.until(lambda _: look())

    def wait(self, selector):
        """Return what fits a selector as soon as something does."""
        return self.until(lambda: self.browser.find_elements(By.CSS_SELECTOR, selector))

    def wait_text(self, selector, text):
        """Return the first that fits a selector and reads as wanted.

        What fades in has no text to a reader before it is seen.
        """

        def find():
            found = self.browser.find_elements(By.CSS_SELECTOR, selector)
            return next((element for element in found if text in element.text), None)

        return self.until(find)

    def text(self, selector):
        return self.browser.find_element(By.CSS_SELECTOR, selector).text

    def tab(self, name):
        self.browser.find_element(
            By.XPATH, f"//button[@role='tab'][normalize-space()='{name}']"
        ).click()

    def type(self, box, text, end=""):
        field = self.browser.find_element(By.CSS_SELECTOR, f"{box} textarea, {box} input")
        field.clear()
        field.send_keys(text + end)

    def search(self, query):
        self.type("#query", query, Keys.ENTER)
        return self.wait("#results section")

    def choose(self, box, option):
        self.browser.find_element(By.CSS_SELECTOR, f"{box} input").click()
        self.wait_text(f"{box} [role=option]", option).click()

    def is_hacked(self):
        return self.browser.execute_script("return window.hacked === 1")


@pytest.fixture(scope="module")
def page(finished, tmp_path_factory):
    """The app of the toy run as its command starts it, without a network, in a browser."""
    home = tmp_path_factory.mktemp("served")
    port, noted = free_port(), home / "asked.txt"
    command = [SCRIPTS / "run_without_network.py", noted, RECIPES / "app.py", finished]
    with (
        open_browser(tmp_path_factory.mktemp("profile")) as browser,
        served([*command, f"--port={port}"], port, home) as address,
    ):
        page = AppPage(browser, address)
        page.noted = noted
        yield page


@pytest.mark.slow
def test_search_shows_three_systems_side_by_side(page):
    page.open().search("green chair")
    names = [
        e.text for e in page.browser.find_elements(By.CSS_SELECTOR, "#results .systems section h2")
    ]
    assert names == ["BM25", "Supervised", "Adversarial"]
    columns = page.browser.find_elements(By.CSS_SELECTOR, "#results section")
    assert len({column.location["y"] for column in columns}) == 1
    assert "A judged query of the test split: 21 products were judged" in page.text("#results")
    assert "✓ relevant, grade 2" in columns[0].text and "BM25 #" in columns[2].text
    page.type("#query", "zzz", Keys.ENTER)
    page.wait_text("#results", "No product shares a word with this query.")
    page.type("#query", "  ", Keys.ENTER)
    page.wait_text("#results", "the query is blank")


@pytest.mark.slow
def test_an_example_query_is_one_click(page):
    page.open()
    page.browser.find_element(By.XPATH, "//button[normalize-space()='white lamp']").click()
    page.wait("#results section")
    assert "A judged query of the test split" in page.text("#results")
    assert "blended with BM25" in page.text("#results")
    page.browser.find_element(By.CSS_SELECTOR, "input[type=checkbox]").click()
    page.until(lambda: "blended with BM25" not in page.text("#results"))
    page.browser.find_element(By.XPATH, "//button[normalize-space()='green chair']").click()
    page.wait_text("#results", "21 products were judged")
    assert "blended with BM25" not in page.text("#results")


@pytest.mark.slow
def test_attack_shows_the_generators_queries(page):
    page.open().tab("Attack")
    page.type("#find", "green floor lamp", Keys.ENTER)
    page.wait_text("#card", "green floor lamp")
    page.type("#find", "zzz", Keys.ENTER)
    page.wait_text("#card", "No product shares a word with this text.")
    product = page.browser.find_element(By.CSS_SELECTOR, "#product input")
    assert product.get_property("value") == "green floor lamp"
    page.browser.find_element(By.ID, "attack").click()
    page.wait("#attacks table")
    rows = page.browser.find_elements(By.CSS_SELECTOR, "#attacks tbody tr")
    assert 1 <= len(rows) <= 4
    for row in rows:
        cells = row.find_elements(By.TAG_NAME, "td")
        assert len(cells) == 6
        assert all(re.fullmatch(r"[01]\.\d\d", cell.text) for cell in cells[:3])
        assert all(re.fullmatch(r"\d+|–", cell.text) for cell in cells[3:])


@pytest.mark.slow
def test_rounds_are_browsed_with_filters(page, run):
    page.open().tab("Rounds")
    page.wait("#written table")
    assert "1 to 20 of 84 queries" in page.text("#written")
    page.choose("#round", "1")
    page.wait_text("#written", "of 42 queries")
    total = run.browse(1, text="chair")[1]
    page.type("#contains", "chair")
    wanted = f"of {total} queries"
    page.wait_text("#written", wanted)
    page.choose("#verdict", "accepted")
    total = run.browse(1, [""], "chair")[1]
    wanted = f"of {total} queries" if total else "No query passes these filters."
    page.wait_text("#written", wanted)
    assert "supervised (round 0)" in page.browser.find_element(By.CSS_SELECTOR, ".rounds").text


@pytest.mark.slow
def test_hostile_texts_are_shown_and_do_nothing(page):
    """Each place that shows a title: results, choices, the card, the queries of the rounds."""
    shown = HOSTILE.replace("\u202e", "[U+202E]").replace("\x1b", "[U+001B]")
    page.open().search("hacked onerror")
    assert shown in page.text("#results")
    page.tab("Attack")
    page.type("#find", "hacked onerror", Keys.ENTER)
    page.wait_text("#card", "hacked")
    assert page.text("#card").count(shown) == 2  # title and description
    assert "\u202e" not in page.browser.page_source and "\x1b" not in page.browser.page_source
    page.browser.find_element(By.CSS_SELECTOR, "#product input").click()
    page.wait_text("#product [role=option]", shown[:60])
    page.browser.find_element(By.ID, "attack").click()
    page.wait("#attacks table")
    page.tab("Rounds")
    page.type("#contains", "hacked")
    page.wait_text("#written", shown)
    assert not page.is_hacked()
    typed = "<img src=x onerror='window.hacked=1'> ${window.hacked=1} {{value}}"
    page.tab("Search")
    page.search(typed)
    assert not page.is_hacked()


@pytest.mark.slow
@pytest.mark.parametrize("is_dark", [False, True])
@pytest.mark.parametrize("width", [DESKTOP, PHONE])
def test_page_is_readable_and_fits(page, width, is_dark):
    page.open(width, is_dark).search("green chair")
    assert low_contrast(page.browser) == [] and not overflows(page.browser)
    for name in ("Attack", "Rounds"):
        page.tab(name)
        time.sleep(0.5)
        assert low_contrast(page.browser) == [] and not overflows(page.browser)


@pytest.mark.slow
def test_nobody_else_is_asked_and_nothing_complains(page):
    """Neither the browser nor the server, in all that the tests above have done."""
    page.open().search("green chair")
    assert requested_hosts(page.browser) == {"127.0.0.1"}
    assert page.complaints + errors(page.browser) == []
    assert page.noted.read_text() == ""


# --- The Space ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def space(finished, tmp_path_factory):
    """What `--push_to_space` printed, and the Hub that took it."""
    home = tmp_path_factory.mktemp("pusher")
    with hub_server() as server:
        command = [sys.executable, RECIPES / "app.py", finished, "--push_to_space=user/toy"]
        result = subprocess.run(
            [*map(str, command), "--licence=apache-2.0", "--private"],
            cwd=home,
            env=subprocess_environment(
                HF_ENDPOINT=server.url, HF_HOME=str(home), HF_HUB_OFFLINE="0",
                HF_HUB_DISABLE_XET="1", HF_TOKEN=TOKEN,
            ),
            capture_output=True,
            text=True,
            timeout=300,
        )  # fmt: skip
        assert result.returncode == 0, result.stderr[-3000:]
        assert result.stdout.strip() == f"{server.url}/spaces/user/toy"
        yield server


@pytest.mark.slow
def test_the_space_holds_the_app_and_what_it_reads(space, finished, run):
    repository = space.space("user/toy")
    assert repository.private
    files = repository.files()
    card = ModelCard(files["README.md"].decode())
    assert card.data.sdk == "gradio" and card.data.app_file == "app.py"
    assert card.data.license == "apache-2.0"
    assert card.data.sdk_version == version("gradio")
    assert card.data.python_version == f"{sys.version_info.major}.{sys.version_info.minor}"
    needed = files["requirements.txt"].decode().splitlines()
    assert any(line.startswith("torch") for line in needed)
    assert not any("pytest" in line or "extra" in line for line in needed)
    assert {"app.py", "agr_trl/app_page.py", "agr_trl/templates/app.html.j2"} <= set(files)
    assert {name for name in files if name.startswith("run/")} >= {
        "run/config.yaml", "run/metrics.json", "run/retriever/model.safetensors",
        "run/generator/model.safetensors", "run/round_00/retriever/model.safetensors",
        "run/round_01/queries.parquet", "run/data/products.parquet",
    }  # fmt: skip
    for name, content in files.items():
        for secret in (TOKEN, str(finished.parent), str(Path.home() / "x")[:-2]):
            assert len(secret) < 4 or secret.encode() not in content, (name, secret)


@pytest.mark.slow
def test_the_space_runs_from_its_own_files(space, tmp_path_factory):
    home = tmp_path_factory.mktemp("space")
    for name, content in space.space("user/toy").files().items():
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_bytes(content)
    template = home / "agr_trl" / "templates" / "app.html.j2"  # this copy runs, no installed one
    template.write_text(template.read_text().replace("<h1>Run", "<h1>Copied run"))
    port = free_port()
    place = {"GRADIO_SERVER_NAME": "127.0.0.1", "GRADIO_SERVER_PORT": str(port)}
    with served(["app.py"], port, home, PYTHONPATH="", **place) as address:
        start = urlopen(address, timeout=10).read().decode()
        assert "Copied run" in start and "On secret_beir data" in start and "green chair" in start


def test_a_space_needs_a_name_and_a_login(finished, monkeypatch):
    with pytest.raises(UserError, match="is no name for a repository"):
        hub.publish_space(finished, "no name")
    monkeypatch.setattr(hub, "get_token", lambda: None)
    with pytest.raises(UserError, match="nobody is logged in"):
        hub.publish_space(finished, "user/toy")


def test_a_relevance_model_of_this_machine_comes_along(tmp_path, finished, monkeypatch):
    scorer = tmp_path / "secret" / "bi_encoder"
    (scorer / "1_Pooling").mkdir(parents=True)
    for name in ("config.json", "1_Pooling/config.json", "model.safetensors", "optimizer.pt"):
        (scorer / name).write_text("{}")
    record, run = open_run(finished)
    run.reward_args.relevance_model = str(scorer)
    files = hub._space_files(record, run, "user/toy", "unknown", tmp_path)
    assert {name for name in files if name.startswith("relevance_model")} == {
        "relevance_model/config.json",
        "relevance_model/1_Pooling/config.json",
        "relevance_model/model.safetensors",
    }
    config = yaml.safe_load(files["run/config.yaml"])
    assert config["reward"]["relevance_model"] == "relevance_model"
    assert config["dataset_path"] == "secret_beir"
