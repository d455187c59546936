"""What the app shows of a finished run: searches, an attack on a product, its rounds' queries.

Nothing here knows of gradio: app_page.py lays these answers out, hub.py publishes them as a Space.
"""

import socket
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from tempfile import gettempdir
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import expit

from agr_trl.acceptance import independent_scores
from agr_trl.adversarial import QUERIES_FILE, SECTIONS, AdversarialRun
from agr_trl.config import parse_recipe
from agr_trl.data import RelevanceDataset
from agr_trl.errors import UserError
from agr_trl.generator import load_generator, sample_queries
from agr_trl.model_cards import RunRecord, read_run
from agr_trl.query_files import read_queries
from agr_trl.report import query_rows, read_if_there, verdict
from agr_trl.report_text import reason_words
from agr_trl.retriever import Retriever
from agr_trl.search import ProductSearch
from agr_trl.stages import load_dataset

Rows = list[dict[str, Any]]

TABLES = ("products", "queries", "judgements")
PRODUCT_COLUMNS = ["product_id", "title", "description"]
CANDIDATES = 100  # of BM25, which the retrievers rank
SHOWN_PRODUCTS = 10
OFFERED_PRODUCTS = 30
EXAMPLE_QUERIES = 8
ROWS_PER_PAGE = 20
MAX_PORT = 65_535
MAX_CHARACTERS = 200  # of what is typed
PRECISIONS = ("bf16", "fp16", "tf32", "bf16_full_eval", "fp16_full_eval")
SYSTEMS = ("bm25", "supervised", "adversarial")


def serve(
    run_folder: Path,
    dataset_path: str | None = None,
    host: str | None = None,
    port: int | None = None,
) -> None:
    """Show a finished run in a browser until the process is stopped.

    Without host and port gradio's environment decides, as on a Space. Raises `UserError` without
    gradio, for a run that `FinishedRun` refuses, and for an address that cannot be served on.
    """
    require_gradio()
    check_address(host, port)
    from agr_trl.app_page import launch

    launch(FinishedRun(run_folder, dataset_path), host, port)


def require_gradio() -> None:
    """Raise `UserError` where the app's extra is not installed."""
    if find_spec("gradio") is None:
        raise UserError('the app needs gradio; run `pip install -e ".[app]"`')


def check_address(host: str | None, port: int | None) -> None:
    """Raise `UserError` for a host or port that cannot be served on, before any model loads.

    gradio takes whatever fails for a port that is taken.
    """
    if port is not None and not 1 <= port <= MAX_PORT:
        raise UserError(f"`port` is {port}; it must be from 1 to {MAX_PORT}")
    if host is None or port is None:  # gradio chooses
        return
    try:
        places = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:  # the latter for what can be no name
        raise cannot_serve(host, port, error) from error
    reasons = []
    for family, kind, _, _, address in places:  # one is enough: `localhost` may name two
        try:
            with socket.socket(family, kind) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(address)
            return
        except OSError as error:
            reasons.append(error)
    raise cannot_serve(host, port, reasons[-1])


def cannot_serve(host: str | None, port: int | None, error: Exception) -> UserError:
    """Return the error of an address that cannot be served on."""
    return UserError(
        f"cannot serve the app: host `{host}`, port {port}: {error}; give another --host or --port"
    )


def open_run(folder: Path, dataset_path: str | None = None) -> tuple[RunRecord, AdversarialRun]:
    """Return a finished run's record, and its settings and data, without any model.

    `dataset_path` is where the run's data set lies now, if it was moved. Raises `UserError` where
    the run has not ended, a model is gone, or the data are others.
    """
    record = read_run(folder)
    supervised = folder / "round_00" / "retriever"
    if not (supervised / "config.json").is_file():
        raise UserError(f"`{supervised}` holds no model; copy the run folder with its rounds")
    # Nothing is written, so the run may lie where this user may not write.
    words = ["--config", str(folder / "config.yaml"), "--output_dir", gettempdir()]
    words += ["--dataset_path", dataset_path] if dataset_path else []
    # Nothing is trained, and settings are refused that this machine could not train with.
    for stage in ("retriever", "warm_up", "generator"):
        words += [f"--{stage}.{name}=false" for name in PRECISIONS]
        words.append(f"--{stage}.report_to=none")
    words += ["--generator.per_device_train_batch_size=2", "--generator.num_generations=2"]
    words.append("--lesson_averaging=0")  # whose start need not be here
    recipe = parse_recipe(SECTIONS, "recipes/train_adversarial.py", words)
    batches = dict.fromkeys(("generation_batch_size", "steps_per_generation"))
    recipe = recipe.replaced({"generator": batches})
    dataset = read_tables(folder / "data")
    if dataset is None:
        dataset = load_dataset(recipe[""].build()[1])
        made_with = read_if_there(folder / "run.json").get("data_fingerprint")
        if made_with not in (None, dataset.fingerprint()):
            raise UserError(
                f"`{folder}` was made with other data; give its data with `--dataset_path`"
            )
    return record, AdversarialRun(recipe, dataset)


class FinishedRun:
    """A finished run with its data and models, and the answers that the app shows."""

    def __init__(self, folder: Path, dataset_path: str | None = None) -> None:
        """Load a run folder with its models; raises what `open_run` raises."""
        self.record, self.run = open_run(folder, dataset_path)
        self.dataset = self.run.dataset
        self.reasons = reason_words(self.record.config.get("reward") or {})
        self.retrievers = {
            name: Retriever.from_pretrained(str(folder / path)).to_device()
            for name, path in (("supervised", "round_00/retriever"), ("adversarial", "retriever"))
        }
        model, self._tokenizer = load_generator(str(folder / "generator"))
        self._generator = model.to(self.retrievers["adversarial"].model.device).eval()
        rounds, best = self.record.metrics["rounds"], self.record.best_round
        weights = {
            name: rounds[number]["dev"].get("blend_weight")
            for name, number in (("supervised", 0), ("adversarial", best))
        }
        self.can_blend = None not in weights.values()
        self._searches = {
            blended: {
                name: ProductSearch(
                    self.dataset,
                    self.run.index,
                    retriever.score,
                    weights[name] if blended else None,
                )
                for name, retriever in self.retrievers.items()
            }
            for blended in (False, True)
        }

    # --- Search ----------------------------------------------------------------------------------

    def search(self, query: str, blended: bool) -> dict[str, Rows]:
        """Return the best products of BM25 and of both retrievers, by system.

        Rows have rank, product_id, title, score, bm25_rank, and where the query is a judged one
        grade and relevant, None for a product that was not judged. `blended` mixes each retriever
        with BM25 by the weight that dev chose. Raises `UserError` for a blank query.
        """
        judged = self.judgements(query).set_index("product_id")
        found = {}
        rankings = self._rankings(query, blended)
        bm25_ranks = rankings["bm25"].set_index("product_id")["rank"]
        for name, ranking in rankings.items():
            rows: Rows = ranking.head(SHOWN_PRODUCTS).to_dict("records")
            for row in rows:
                row["bm25_rank"] = bm25_ranks[row["product_id"]]
                row["grade"] = row["relevant"] = None
                if row["product_id"] in judged.index:
                    row["grade"] = int(judged.at[row["product_id"], "grade"])
                    row["relevant"] = bool(judged.at[row["product_id"], "label"] >= 0.5)
            found[name] = rows
        return found

    def _rankings(self, query: str, blended: bool) -> dict[str, pd.DataFrame]:
        """Return BM25's candidates as each system ranks them: rank, product_id, title, score."""
        rankings = {
            name: search.search(query, CANDIDATES, CANDIDATES)
            for name, search in self._searches[blended].items()
        }
        top, scores = (row[0] for row in self.run.index.top([query], CANDIDATES))
        found = self.dataset.products.iloc[top[scores > 0]][["product_id", "title"]]
        bm25 = found.assign(score=scores[scores > 0], rank=np.arange(1, len(found) + 1))
        return {"bm25": bm25, **rankings}

    def judgements(self, query: str) -> pd.DataFrame:
        """Return what was judged for a query, whatever its case and spaces: may be empty.

        One row a product, its highest grade: product_id, grade, label, split.
        """
        ids = self._judged_queries.get(_key(query), [])
        rows = self.dataset.judgements
        rows = rows[rows["query_id"].isin(ids)].sort_values("grade", ascending=False, kind="stable")
        return rows.drop_duplicates("product_id")[["product_id", "grade", "label", "split"]]

    @cached_property
    def _judged_queries(self) -> dict[str, list[str]]:
        judged = self.dataset.queries["query_id"].isin(self.dataset.judgements["query_id"])
        queries = self.dataset.queries[judged]
        return queries.groupby(queries["query"].map(_key))["query_id"].agg(list).to_dict()

    def example_queries(self) -> list[str]:
        """Return some judged queries with a relevant product, of test where there is one.

        None is longer than what is typed may be: cut, it would be a query that nobody judged.
        """
        fits = self.dataset.queries["query"].str.len() <= MAX_CHARACTERS
        rows = self.dataset.judgements[self.dataset.judgements["label"] >= 0.5]
        rows = rows[rows["query_id"].isin(self.dataset.queries.loc[fits, "query_id"])]
        splits = [split for split in ("test", "dev", "train") if (rows["split"] == split).any()]
        ids = rows.loc[rows["split"] == splits[0], "query_id"].unique() if splits else []
        queries = self.dataset.queries.set_index("query_id").loc[ids, "query"].drop_duplicates()
        texts: list[str] = queries.sample(
            min(EXAMPLE_QUERIES, len(queries)), random_state=0
        ).tolist()
        return texts

    # --- Attack a product ------------------------------------------------------------------------

    def find_products(self, text: str) -> list[int]:
        """Return positions of products to choose from: BM25's best, or a few for a blank text."""
        if text.strip():
            top, scores = (row[0] for row in self.run.index.top([text], OFFERED_PRODUCTS))
            return [int(position) for position in top[scores > 0]]
        count = len(self.dataset.products)
        chosen = np.random.default_rng(0).choice(count, min(OFFERED_PRODUCTS, count), replace=False)
        return sorted(map(int, chosen))

    def attack(self, position: int, queries_per_product: int) -> Rows:
        """Write queries for the product at a position of the catalogue and look at each.

        One row a distinct query, in the order in which they were drawn: query, times (it was
        drawn), relevance (S), probabilities (system -> R's probability), ranks (system -> the
        product's rank among BM25's candidates, None where BM25 does not find it), accepted and
        verdict. Queries are drawn anew at each call.
        """
        prompts = self.run.prompts.iloc[[position]]
        settings = replace(self.run.loop, queries_per_product=queries_per_product)
        tokens = self.record.max_prompt_tokens(self.record.best_round)
        drawn = sample_queries(
            self._generator, self._tokenizer, prompts["prompt"].tolist(), settings, tokens
        )
        times = Counter(drawn[0])
        queries = list(times)
        documents = prompts["document"].tolist() * len(queries)
        relevance = independent_scores(self.run.relevance, queries, documents)
        titles = prompts["title"].tolist() * len(queries)
        positions = np.full(len(queries), position)
        reasons = self.run.acceptance.reasons(queries, documents, titles, positions, relevance)
        probabilities = {
            name: expit(retriever.score(queries, documents))
            for name, retriever in self.retrievers.items()
        }
        return [
            {
                "query": query,
                "times": times[query],
                "relevance": float(relevance[row]),
                "probabilities": {name: float(p[row]) for name, p in probabilities.items()},
                "ranks": self._ranks(query, position),
                "accepted": not reasons[row],
                "verdict": verdict(reasons[row], self.reasons),
            }
            for row, query in enumerate(queries)
        ]

    def _ranks(self, query: str, position: int) -> dict[str, int | None]:
        """Return each system's rank of a product for a query, None where it is no candidate."""
        if not query.strip():
            return dict.fromkeys(SYSTEMS)
        product_id = self.dataset.products["product_id"].iloc[position]
        ranks: dict[str, int | None] = {}
        for name, ranking in self._rankings(query, blended=False).items():
            rank = ranking.loc[ranking["product_id"] == product_id, "rank"]
            ranks[name] = None if rank.empty else int(rank.iloc[0])
        return ranks

    # --- Browse the rounds -----------------------------------------------------------------------

    @cached_property
    def queries(self) -> pd.DataFrame:
        """All queries that were written, in all rounds that have them."""
        numbers = [this["round"] for this in self.record.metrics["rounds"]]
        files = [self.record.round_folder(number) / QUERIES_FILE for number in numbers]
        parts = [read_queries(file) for file in files if file.is_file()]
        columns = ["round", "query", "title", "reason", "accepted"]
        return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=columns)

    def verdicts(self) -> dict[str, str]:
        """Return the reasons that occur, '' is accepted, with their words."""
        return {reason: verdict(reason, self.reasons) for reason in self.queries["reason"].unique()}

    def browse(
        self,
        round_number: int | None = None,
        reasons: Sequence[str] | None = None,
        text: str = "",
        page: int = 1,
    ) -> tuple[Rows, int]:
        """Return one page of the queries that pass all filters, and how many pass.

        `text` is looked for in query and title, whatever its case; None leaves a filter out.
        """
        table = self.queries
        if round_number is not None:
            table = table[table["round"] == round_number]
        if reasons is not None:
            table = table[table["reason"].isin(reasons)]
        if text.strip():
            parts = [
                table[column].str.contains(text.strip(), case=False, regex=False)
                for column in ("query", "title")
            ]
            table = table[parts[0] | parts[1]]
        begin = (max(1, page) - 1) * ROWS_PER_PAGE
        return query_rows(table.iloc[begin : begin + ROWS_PER_PAGE], self.reasons), len(table)


# --- The data set beside a run, where its source is not ------------------------------------------


def table_contents(dataset: RelevanceDataset) -> dict[str, pd.DataFrame]:
    """Return a data set as tables from which `read_tables` makes it again, by file name."""
    products = dataset.products[PRODUCT_COLUMNS]
    judgements = dataset.judgements.assign(has_ids=dataset.has_ids, max_grade=dataset.max_grade)
    return dict(zip(TABLES, (products, dataset.queries, judgements), strict=True))


def read_tables(folder: Path) -> RelevanceDataset | None:
    """Return the data set that lies in a folder as Parquet tables, None where none does."""
    files = [folder / f"{name}.parquet" for name in TABLES]
    if not all(file.is_file() for file in files):
        return None
    products, queries, judgements = map(pd.read_parquet, files)
    has_ids, max_grade = judgements[["has_ids", "max_grade"]].iloc[0]
    judgements = judgements.drop(columns=["has_ids", "max_grade"])
    return RelevanceDataset(products, queries, judgements, bool(has_ids), int(max_grade))


def _key(query: str) -> str:
    return " ".join(query.casefold().split())
