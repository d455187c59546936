"""The one type that every reader ends in, and the one function that loads it."""

import hashlib
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd

from agr_trl.data.beir import read_beir
from agr_trl.data.cache import cache_folder
from agr_trl.data.demo import DEV_FRACTION, TEST_FRACTION, open_demo_shop
from agr_trl.data.esci import LOCALES, VERSIONS, read_esci
from agr_trl.data.pairs import read_pairs
from agr_trl.data.splits import SPLITS, split_queries, variant_key
from agr_trl.data.tables import SourceTables
from agr_trl.data.wands import COMMIT, download_wands, read_wands
from agr_trl.errors import UserError

logger = logging.getLogger(__name__)

FORMATS = ("wands", "esci", "beir", "pairs", "demo")


def document_text(title: str, description: str) -> str:
    """Join what retriever and BM25 read of a product."""
    return f"{title} {description}".strip()


def prompt_text(title: str, description: str) -> str:
    """Write what the generator reads of a product: "Title: … - Description: …".

    A product without a description ends in "Description:".
    """
    return f"Title: {title} - Description: {description}".strip()


@dataclass(frozen=True, eq=False)
class RelevanceDataset:
    """Products, queries and who judged what: the input of every job.

    `products` (P rows, catalogue order) has product_id, title, description ("" where missing) and
    may have more; `queries` has query_id and query, judged or not; `judgements` has query_id,
    product_id, grade (int, 0 to `max_grade`), label (float, 0 to 1) and split ("train", "dev" or
    "test"), in file order. No query is in two splits. Where `has_ids` is false the ids were made
    from the texts and only pair metrics apply.
    """

    products: pd.DataFrame
    queries: pd.DataFrame
    judgements: pd.DataFrame
    has_ids: bool
    max_grade: int

    @cached_property
    def documents(self) -> list[str]:
        """Return the document text of each product, in catalogue order (P texts)."""
        return _texts(self.products, document_text)

    def pairs(self, split: str) -> pd.DataFrame:
        """Return a split's judged pairs in file order, with their texts.

        Columns query_id, product_id, query, document, label (float, 0 to 1), grade (int). Raises
        `UserError` where the split has none.
        """
        rows = self.judgements[self.judgements["split"] == split]
        if rows.empty:
            raise UserError(
                f"split {split!r} has no judgements; {_what_is_there(self.judgements, split)}"
            )
        texts = self.queries.set_index("query_id")["query"]
        # As objects many pairs hold one document's text, which "str" would copy for each.
        documents = pd.Series(self.documents, index=self.products["product_id"], dtype=object)
        columns = {
            "query_id": rows["query_id"],
            "product_id": rows["product_id"],
            "query": rows["query_id"].map(texts),
            "document": documents.reindex(rows["product_id"]).set_axis(rows.index),
            "label": rows["label"],
            "grade": rows["grade"],
        }
        return pd.DataFrame(columns).reset_index(drop=True)

    def prompts(self) -> pd.DataFrame:
        """Return product_id, document and prompt of the whole catalogue (P rows)."""
        columns = {
            "product_id": self.products["product_id"],
            "document": self.documents,
            "prompt": _texts(self.products, prompt_text),
        }
        return pd.DataFrame(columns)

    def fingerprint(self) -> str:
        """Return the sha256 (hex) of the content, wherever it was read from."""
        return _sha256(self.products, self.queries, self.judgements)

    def fingerprints(self) -> dict[str, str]:
        """Return for each table its number of rows and the beginning of its sha256, to compare."""
        tables = {"products": self.products, "queries": self.queries, "judgements": self.judgements}
        return {
            name: f"{len(table)} rows with sha256 {_sha256(table)[:12]}"
            for name, table in tables.items()
        }


def load_relevance_dataset(
    dataset_format: str,
    dataset_path: str | Path | None = None,
    split: str | None = None,
    *,
    relevant_grade: int = 1,
    dev_fraction: float | None = None,
    test_fraction: float | None = None,
    split_seed: int = 0,
    esci_locale: str | None = None,
    esci_version: str | None = None,
) -> RelevanceDataset:
    """Load a data set of one of the five formats, checked, labelled and split.

    The label of a graded pair is 1 from `relevant_grade` on, else 0; `pairs` keep their label.
    With `split` only that split's judgements are kept; one file of pairs is the split that is
    asked for. A source without splits (WANDS, the demo, one file of pairs and no `split`) is split
    by query, fixed by `split_seed`, with a fifth of the queries for dev and for test each unless
    the fractions say otherwise (the demo has its own). A source with splits takes none, but where
    it has train and no dev `dev_fraction` takes the dev queries from train in the same way; for
    ESCI, which is so, that is a fifth unless told otherwise, and of its locales and versions "us"
    and "small" are read. Without a path WANDS is
    downloaded and the demo generated, once, into $XDG_CACHE_HOME/agr_trl. Raises `UserError` for
    all wrong input.
    """
    if split is not None and split not in SPLITS:
        raise UserError(f"split is {split!r}; it must be one of {', '.join(SPLITS)}")
    path = Path(dataset_path) if dataset_path is not None else None
    if dataset_format == "esci":
        source = _open_esci(path, esci_locale or "us", esci_version or "small", test_fraction)
    elif esci_locale or esci_version:
        raise UserError(
            "esci_locale and esci_version belong to dataset_format esci; leave them out for "
            f"{dataset_format}"
        )
    else:
        source = _read(dataset_format, path)
    if not 1 <= relevant_grade <= source.max_grade:
        raise UserError(
            f"relevant_grade is {relevant_grade}; grades of this data set end at "
            f"{source.max_grade}, so it must be from 1 to {source.max_grade}"
        )
    judgements = source.judgements
    is_one_file = dataset_format == "pairs" and "split" not in judgements
    is_given = dev_fraction is not None or test_fraction is not None
    dev, test = (DEV_FRACTION, TEST_FRACTION) if dataset_format == "demo" else (0.2, 0.2)
    dev = dev if dev_fraction is None else dev_fraction
    test = test if test_fraction is None else test_fraction
    if "split" in judgements:
        lacks_dev = {"train", "dev"} & set(judgements["split"]) == {"train"}
        if test_fraction is not None or (dev_fraction is not None and not lacks_dev):
            raise UserError(
                f"{path} has splits of its own; leave dev_fraction and test_fraction out"
            )
        _check_no_leak(source)
        if lacks_dev and (dev_fraction is not None or dataset_format == "esci"):
            is_train = judgements["split"] == "train"
            split_of_query = _split_judged(source, judgements[is_train], dev, 0, split_seed)
            dev_or_train = judgements["query_id"].map(split_of_query)
            judgements = judgements.assign(split=judgements["split"].mask(is_train, dev_or_train))
    elif is_one_file and split is not None:
        if is_given:
            raise UserError(
                f"{path} is one file, all of which is the split {split}; leave dev_fraction and "
                "test_fraction out"
            )
        judgements = judgements.assign(split=split)
        logger.info("%s is one file: all its pairs count as %s, none is set apart", path, split)
    else:
        split_of_query = _split_judged(source, judgements, dev, test, split_seed)
        judgements = judgements.assign(split=judgements["query_id"].map(split_of_query))
    return _finish(source, judgements, split, relevant_grade)


def _read(dataset_format: str, path: Path | None) -> SourceTables:
    if dataset_format not in FORMATS:
        raise UserError(
            f"dataset_format is {dataset_format!r}; it must be one of {', '.join(FORMATS)}"
        )
    if dataset_format == "demo":
        return read_wands(open_demo_shop(path))
    if dataset_format == "wands" and path is None:
        return read_wands(download_wands(cache_folder() / f"wands-{COMMIT}"))
    if dataset_format == "pairs":
        return read_pairs(_existing(dataset_format, path))
    folder = _existing_folder(dataset_format, path)
    return read_wands(folder) if dataset_format == "wands" else read_beir(folder)


def _open_esci(
    path: Path | None, locale: str, version: str, test_fraction: float | None
) -> SourceTables:
    for name, value, known in (
        ("esci_locale", locale, LOCALES),
        ("esci_version", version, VERSIONS),
    ):
        if value not in known:
            raise UserError(f"{name} is {value!r}; it must be one of {', '.join(known)}")
    if test_fraction is not None:
        raise UserError("ESCI has a test split of its own; leave test_fraction out")
    return read_esci(_existing_folder("esci", path), locale, version)


def _existing(dataset_format: str, path: Path | None) -> Path:
    if path is None:
        raise UserError(f"dataset_format {dataset_format} needs a dataset_path")
    if not path.exists():
        raise UserError(f"dataset_path {path} does not exist")
    return path


def _existing_folder(dataset_format: str, path: Path | None) -> Path:
    folder = _existing(dataset_format, path)
    if not folder.is_dir():
        raise UserError(f"dataset_path {folder} is a file; {dataset_format} needs a folder")
    return folder


def _split_judged(
    source: SourceTables,
    judgements: pd.DataFrame,
    dev_fraction: float,
    test_fraction: float,
    seed: int,
) -> pd.Series:
    """Return the split of each query that has one of the judgements (index query_id)."""
    judged = source.queries["query_id"].isin(judgements["query_id"].unique())
    texts = source.queries[judged].set_index("query_id")["query"]
    return split_queries(texts, dev_fraction, test_fraction, seed)


def _check_no_leak(source: SourceTables) -> None:
    """Raise `UserError` where one query text is in two stated splits; warn of mere variants."""
    texts = source.queries.set_index("query_id")["query"]
    rows = source.judgements[["query_id", "split"]].drop_duplicates()
    rows = rows.assign(text=rows["query_id"].map(texts).str.lower())
    in_two = rows.groupby("text")["split"].transform("nunique") > 1
    if in_two.any():
        text = rows.loc[in_two, "text"].iloc[0]
        splits = " and ".join(sorted(set(rows.loc[rows["text"] == text, "split"])))
        raise UserError(f"query {text!r} is in {splits}; a query belongs in one split")
    rows = rows.assign(key=rows["text"].map(variant_key))
    variants = rows[rows.groupby("key")["split"].transform("nunique") > 1]
    if len(variants):
        logger.warning(
            "%d queries have a spelling or plural variant in another split, such as %s",
            len(variants),
            sorted(variants["text"])[:2],
        )


def _finish(
    source: SourceTables, judgements: pd.DataFrame, split: str | None, relevant_grade: int
) -> RelevanceDataset:
    if "label" not in judgements:
        judgements = judgements.assign(label=(judgements["grade"] >= relevant_grade).astype(float))
    if split is not None:
        chosen = judgements["split"] == split
        if not chosen.any():
            raise UserError(f"there is no split {split!r}; {_what_is_there(judgements, split)}")
        judgements = judgements[chosen]
    products = source.products
    if "description" not in products:
        products = products.assign(description="")
    columns = ["query_id", "product_id", "grade", "label", "split"]
    return RelevanceDataset(
        products.reset_index(drop=True),
        source.queries.reset_index(drop=True),
        judgements[columns].reset_index(drop=True),
        has_ids=source.has_ids,
        max_grade=source.max_grade,
    )


def _what_is_there(judgements: pd.DataFrame, split: str) -> str:
    """Return the rest of the message for a split that is not there: what is, and what to do."""
    found = [name for name in SPLITS if (judgements["split"] == name).any()]
    if split == "dev" and "train" in found:
        return f"this data set has {', '.join(found)}; `--dev_fraction 0.2` takes dev from train"
    return f"this data set has {', '.join(found)}"


def _sha256(*tables: pd.DataFrame) -> str:
    digest = hashlib.sha256()
    for table in tables:
        for name in table:
            digest.update(json.dumps([name, table[name].tolist()]).encode())
    return digest.hexdigest()


def _texts(products: pd.DataFrame, build: Callable[[str, str], str]) -> list[str]:
    pairs = zip(products["title"].tolist(), products["description"].tolist(), strict=True)
    return [build(title, description) for title, description in pairs]
