"""Read Amazon's Shopping Queries Dataset (ESCI): its examples and products, two Parquet files."""

import html
import logging
import re
from pathlib import Path

import pandas as pd

from agr_trl.data.tables import (
    SourceTables,
    drop_repeats,
    parquet_batches,
    reject,
    reject_unknown,
    require_file,
)
from agr_trl.errors import UserError

logger = logging.getLogger(__name__)

EXAMPLES = "shopping_queries_dataset_examples.parquet"
PRODUCTS = "shopping_queries_dataset_products.parquet"
LOCALES = ("us", "es", "jp")
VERSIONS = ("small", "large")

# Gains are 2^grade - 1, so these are 7, 1, 0, 0: as whole numbers go, close to the 1, .1, .01, 0 by
# which ESCI's authors compute nDCG. A complement (a case for a phone) is no answer to a query.
GRADES = {"E": 3, "S": 1, "C": 0, "I": 0}

# Only the names that shops use, so that "size <M, >XS" stays.
MARKUP = re.compile(
    r"<!--.*?(?:-->|\Z)|</?(?:a|b|big|blockquote|br|center|dd|div|dl|dt|em|font|h[1-6]|hr|i|img|li|ol|p|"
    r"pre|small|span|strong|sub|sup|table|tbody|td|th|thead|tr|u|ul)\b[^<>]*>",
    re.IGNORECASE | re.DOTALL,
)


def read_esci(folder: Path, locale: str, version: str) -> SourceTables:
    """Read one locale of the small or the large version from a folder or its data folder.

    Grades are Exact 3, Substitute 1, Complement and Irrelevant 0. Train and test are the published
    splits, but a train query that test has too, in whatever case, is left out, and so is a product
    without any text. The catalogue is every product that the version's examples of this locale
    judge, in file order; its description is the bullet points followed by the description, both as
    plain text. Raises `UserError` for a missing or malformed file, an unknown label or split, a
    repeated product and a judgement of an unknown one.
    Format: Reddy et al. 2022, arXiv 2206.06588, https://github.com/amazon-science/esci-data.
    """
    if not (folder / EXAMPLES).is_file() and (folder / "shopping_queries_dataset").is_dir():
        folder = folder / "shopping_queries_dataset"
    require_file(folder / PRODUCTS)  # known at once, not after the examples have been read
    examples = _read_examples(folder / EXAMPLES, locale, version)
    judged = pd.Index(examples["product_id"].unique())
    products = _read_products(folder / PRODUCTS, locale, judged)
    remedy = f"{PRODUCTS} has no such product for locale {locale}"
    reject_unknown(folder / EXAMPLES, examples, "product_id", products["product_id"], remedy)
    blank = (products["title"] == "") & (products["description"] == "")
    if blank.any():
        is_left_out = examples["product_id"].isin(products.loc[blank, "product_id"])
        logger.warning(
            "%s: %d products without any text are left out, with %d judgements",
            folder / PRODUCTS,
            blank.sum(),
            is_left_out.sum(),
        )
        products, examples = products[~blank], examples[~is_left_out]
    queries = examples[["query_id", "query"]].drop_duplicates("query_id")
    judgements = examples[["query_id", "product_id", "split"]].assign(
        grade=examples["esci_label"].map(GRADES).astype(int)
    )
    return SourceTables(products, queries, judgements, max_grade=max(GRADES.values()))


def plain_text(text: str) -> str:
    """Return a text without HTML tags, its entities as characters, its white space as blanks."""
    if "<" in text or "&" in text:
        text = html.unescape(MARKUP.sub(" ", text))
    return " ".join(text.split())


def _read_examples(path: Path, locale: str, version: str) -> pd.DataFrame:
    """Return query_id, query, product_id, esci_label and split of the chosen rows, checked."""
    columns = ["query_id", "query", "product_id", "esci_label", "split"]
    version_column = f"{version}_version"
    kept, locales = [], set()
    for rows in parquet_batches(path, [*columns, "product_locale", version_column]):
        locales |= set(rows["product_locale"].dropna())
        chosen = (rows["product_locale"] == locale) & (rows[version_column] == 1)
        kept.append(rows.loc[chosen, columns])
    rows = pd.concat(kept).astype("str")
    if rows.empty:
        raise UserError(
            f"{path} has no example of locale {locale} in the {version} version; "
            f"its locales are {', '.join(sorted(map(str, locales))) or 'none'}"
        )
    rows["query"] = rows["query"].str.strip()
    for column in ("query_id", "query", "product_id"):
        missing = rows[column].isna() | (rows[column] == "")
        reject(path, rows, missing, column, "give it a value or remove the row")
    unknown = ~rows["esci_label"].isin(list(GRADES))
    reject(path, rows, unknown, "esci_label", f"a label is one of {', '.join(GRADES)}")
    unknown = ~rows["split"].isin(["train", "test"])
    reject(path, rows, unknown, "split", "a split is train or test")
    other = rows["query"] != rows.groupby("query_id", sort=False)["query"].transform("first")
    reject(path, rows, other, "query", "an earlier row has another text for the same query_id")
    rows = _without_test_queries_in_train(path, rows)
    return drop_repeats(path, rows, ["query_id", "product_id"], "esci_label")


def _without_test_queries_in_train(path: Path, rows: pd.DataFrame) -> pd.DataFrame:
    """Leave out train rows whose query is in test too: the published large version has such."""
    text = rows["query"].str.lower()
    is_train = rows["split"] == "train"
    in_test = pd.Index(text[~is_train].unique()).get_indexer(pd.Index(text)) >= 0
    leaks = is_train & in_test
    if leaks.any():
        logger.warning(
            "%s: %d train queries are in test too, such as %r; their %d train judgements are left "
            "out",
            path,
            rows.loc[leaks, "query_id"].nunique(),
            text[leaks].iloc[0],
            leaks.sum(),
        )
    return rows[~leaks]


def _read_products(path: Path, locale: str, wanted: pd.Index) -> pd.DataFrame:
    """Return product_id, title and description of the wanted products, as plain text."""
    columns = ["product_id", "product_title", "product_bullet_point", "product_description"]
    kept = []
    for rows in parquet_batches(path, [*columns, "product_locale"]):
        rows = rows[rows["product_locale"] == locale]
        rows = rows[wanted.get_indexer(pd.Index(rows["product_id"].astype("str"))) >= 0]
        title, bullets, text = (
            [plain_text(value) for value in rows[column].astype("str").fillna("")]
            for column in columns[1:]
        )
        pieces = zip(bullets, text, strict=True)
        kept.append(
            pd.DataFrame(
                {
                    "product_id": rows["product_id"].astype("str"),
                    "title": pd.Series(title, rows.index, dtype="str"),
                    "description": pd.Series(
                        [" ".join(filter(None, both)) for both in pieces], rows.index, dtype="str"
                    ),
                }
            )
        )
    products = pd.concat(kept)
    repeated = products.duplicated("product_id")
    remedy = f"an earlier row has the same id in locale {locale}; make ids unique"
    reject(path, products, repeated, "product_id", remedy)
    return products
