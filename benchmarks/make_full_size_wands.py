"""Write a synthetic WANDS of the real size: same files, columns, row counts, text lengths.

    python benchmarks/make_full_size_wands.py FOLDER

For measuring time and memory where the real files are not at hand. Words are made up and labels
drawn by chance (in WANDS' proportions), so it says nothing about quality.
"""

import argparse
import csv
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

import numpy as np

from agr_trl.errors import UserError

SHARES = {"Exact": 0.110, "Partial": 0.628, "Irrelevant": 0.262}
PRODUCT_HEADER = [
    "product_id",
    "product_name",
    "product_class",
    "category hierarchy",
    "product_description",
    "product_features",
    "rating_count",
    "average_rating",
    "review_count",
]


def write_full_size_wands(
    folder: Path,
    products: int = 42_994,
    queries: int = 480,
    judgements: int = 233_448,
    seed: int = 0,
) -> None:
    """Write product.csv, query.csv and label.csv; the same for the same arguments.

    Raises `UserError` where the folder is not empty or there are too few pairs to judge.
    """
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder} is not empty; name a new folder")
    if judgements > products * queries:
        raise UserError(f"{products} products and {queries} queries have no {judgements} pairs")
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    vocabulary = _make_words(rng, 12_000)
    titles = zipf_texts(rng, vocabulary, np.clip(rng.poisson(6, products), 2, None))
    _write(folder / "product.csv", PRODUCT_HEADER, _product_rows(rng, vocabulary, titles))
    # Some ids are skipped, as in the published files.
    query_ids = np.sort(rng.choice(queries + 8, queries, replace=False))
    lengths = rng.integers(1, 6, queries)
    texts = zipf_texts(rng, vocabulary, lengths)
    classes = rng.choice(vocabulary[:500], queries)
    pairs = np.sort(rng.choice(products * queries, judgements, replace=False))
    labels = rng.choice(list(SHARES), judgements, p=list(SHARES.values()))
    # A query names one of its exact products, or nothing could be mined below that one's score.
    exact = pairs[labels == "Exact"]
    for query, first in zip(*np.unique(exact // products, return_index=True), strict=True):
        texts[query] = " ".join(titles[exact[first] % products].split()[: lengths[query]])
    rows = zip(query_ids, texts, classes, strict=True)
    _write(folder / "query.csv", ["query_id", "query", "query_class"], rows)
    ids = np.sort(rng.choice(judgements + 567, judgements, replace=False))
    label_rows = zip(ids, query_ids[pairs // products], pairs % products, labels, strict=True)
    _write(folder / "label.csv", ["id", "query_id", "product_id", "label"], label_rows)


def _product_rows(
    rng: np.random.Generator, vocabulary: np.ndarray, titles: list[str]
) -> Iterable[list[object]]:
    count = len(titles)
    described = rng.random(count) > 0.14
    lengths = np.clip(rng.lognormal(4.0, 0.8, count).astype(int), 5, 900) * described
    descriptions = zipf_texts(rng, vocabulary, lengths)
    features = zipf_texts(rng, vocabulary, np.clip(rng.poisson(90, count), 10, None))
    classes = zipf_texts(rng, vocabulary[:500], rng.integers(0, 3, count))
    for number, (title, description, feature, kind) in enumerate(
        zip(titles, descriptions, features, classes, strict=True)
    ):
        pairs = feature.split()
        stated = "|".join(f"{name} : {value}" for name, value in pairwise(pairs))
        hierarchy = " / ".join(["furniture", *kind.split()])
        name = f"{title} 27.5 '' wide" if number % 7 == 0 else title
        yield [number, name, kind.replace(" ", "|"), hierarchy, description, stated, 9.0, 4.5, 8.0]


def _make_words(rng: np.random.Generator, count: int) -> np.ndarray:
    syllables = np.array([a + b for a in "bcdfghklmnprstvw" for b in ("a", "en", "i", "or", "u")])
    words: dict[str, None] = {}
    while len(words) < count:
        words["".join(rng.choice(syllables, rng.integers(1, 5)))] = None
    return np.array(list(words))


def zipf_texts(rng: np.random.Generator, vocabulary: np.ndarray, lengths: np.ndarray) -> list[str]:
    """Draw texts of so many words each; word n is as frequent as 1 / n (Zipf)."""
    ends = np.cumsum(lengths)
    ranks = len(vocabulary) ** rng.random(int(ends[-1]))
    words = vocabulary[ranks.astype(int) - 1].tolist()
    return [
        " ".join(words[end - length : end])
        for end, length in zip(ends.tolist(), lengths.tolist(), strict=True)
    ]


def _write(path: Path, header: list[str], rows: Iterable) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter="\t", lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    write_full_size_wands(arguments.folder, seed=arguments.seed)
