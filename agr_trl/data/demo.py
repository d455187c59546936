"""A generated furniture shop in WANDS' own file format, with an exact relevance oracle.

It is small but looks like real search: lower-case titles with series names, attributes that only
the description tells, synonyms that share no word (couch, sofa), wider words (seating, neutral),
and descriptions that name other products. All text is made here; nothing is taken from a shop.
"""

import csv
import json
import math
import random
import shutil
import tempfile
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from agr_trl.data.cache import cache_folder
from agr_trl.data.demo_oracle import Attributes, DemoOracle, stems_of
from agr_trl.data.demo_words import KINDS, SERIES, WIDER, Kind, words_of
from agr_trl.data.tables import read_table
from agr_trl.data.wands import GRADES
from agr_trl.errors import UserError

__all__ = ["DemoOracle", "load_demo_oracle", "open_demo_shop", "write_demo_shop"]

# Few judged queries to learn from and many to measure on: of 222 queries 60, 60 and 102.
QUERIES = 222
PRODUCTS_PER_KIND = 30
DEV_FRACTION = 0.27
TEST_FRACTION = 0.46

PRODUCT_HEADER = [
    "product_id",
    "product_name",
    "product_class",
    "product_description",
    "product_features",
]
MARKER_NAME = "demo-shop.json"
MARKER = {"shop": "agr_trl demo", "version": 1}

# How often the title states an attribute; what it leaves out the description states.
IN_TITLE = {"inches": 0.3, "style": 0.25, "material": 0.5, "colour": 0.35, "feature": 0.35}
IN_TITLE |= {"size": 0.0, "bed size": 0.7, "room": 0.1}
OPENINGS = [
    "meet the {} of your dreams .",
    "this {} is what your home has been waiting for .",
    "looking for a new {} ? stop here .",
    "a {} that earns its place .",
]
SENTENCES = {
    "inches": ["it measures {} inches .", "overall : {} '' ."],
    "size": ["size : {} .", "its {} build fits the space you have ."],
    "style": ["its {} look lasts .", "{} charm for every home .", "inspired by {} design ."],
    "material": ["made of {} .", "crafted from {} that ages well .", "the {} is easy to clean ."],
    "colour": ["it comes in {} .", "finished in {} .", "the {} tone is easy to match ."],
    "feature": ["key feature : {} .", "{} , for a daily life with less fuss ."],
    "room": ["suits : {} .", "a fine {} upgrade .", "for {} use ."],
}
WITH_FEATURES = {"storage", "hidden compartment", "wheels", "casters", "drawers", "usb"}


class DemoProduct(NamedTuple):
    """One product; `attributes` has, for each dimension, the values that its text states."""

    product_id: str
    kind: Kind
    title: str
    description: str
    attributes: Attributes


def open_demo_shop(folder: str | Path | None = None, seed: int = 0) -> Path:
    """Return the shop's folder, written first where there is none yet (default: in the cache).

    Raises `UserError` for a folder that holds anything but this shop: nothing is overwritten.
    """
    path = Path(folder) if folder is not None else cache_folder() / f"demo-shop-v1-seed{seed}"
    if path.exists() and not path.is_dir():
        raise UserError(f"{path} is a file; the demo shop needs a folder")
    if path.is_dir() and any(path.iterdir()):
        marker = path / MARKER_NAME
        if not marker.is_file() or json.loads(marker.read_text()) != {**MARKER, "seed": seed}:
            raise UserError(f"{path} holds something else than the demo shop; name another folder")
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    # Written beside its place and renamed, so that no reader ever sees half a shop.
    partial = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        write_demo_shop(partial, seed)
        partial.chmod(0o755)
        try:
            partial.replace(path)
        except OSError:
            # Another process was faster; its shop is the same.
            if not (path / MARKER_NAME).is_file():
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return path


def load_demo_oracle(folder: str | Path | None = None) -> DemoOracle:
    """Load the oracle of the shop in a folder (default: the one in the cache)."""
    path = open_demo_shop(folder) / "product.csv"
    rows = read_table(path, "\t", ["product_id", "product_features"])
    attributes: dict[str, Attributes] = {}
    for product_id, features in zip(rows["product_id"], rows["product_features"], strict=True):
        stated = attributes.setdefault(product_id, {})
        for feature in features.split("|"):
            dimension, value = feature.split(":")
            stated.setdefault(dimension, []).append(value)
    return DemoOracle(attributes)


def write_demo_shop(folder: Path, seed: int = 0) -> None:
    """Write product.csv, query.csv and label.csv of the shop, the same for the same seed."""
    rng = random.Random(seed)
    products = _make_products(rng)
    oracle = DemoOracle({product.product_id: product.attributes for product in products})
    queries = _make_queries(rng, products, oracle)
    labels = _judge(rng, products, queries, oracle)
    _write(folder / "product.csv", PRODUCT_HEADER, [_product_row(product) for product in products])
    rows = [[i, query, _class(kind)] for i, (query, kind) in enumerate(queries)]
    _write(folder / "query.csv", ["query_id", "query", "query_class"], rows)
    _write(folder / "label.csv", ["id", "query_id", "product_id", "label"], labels)
    (folder / MARKER_NAME).write_text(json.dumps({**MARKER, "seed": seed}) + "\n")


def _make_products(rng: random.Random) -> list[DemoProduct]:
    kinds = KINDS * PRODUCTS_PER_KIND
    rng.shuffle(kinds)
    return [_make_product(rng, str(number), kind) for number, kind in enumerate(kinds)]


def _make_product(rng: random.Random, product_id: str, kind: Kind) -> DemoProduct:
    drawn = _draw_attributes(rng, kind)
    is_bed = "inches" not in drawn
    has_description = rng.random() < 0.9
    attributes: Attributes = {"kind": [kind.names.split("|")[0]], "series": [rng.choice(SERIES)]}
    in_title, sentences = [], []
    for dimension, values in drawn.items():
        for value in values:
            share = IN_TITLE["bed size" if is_bed and dimension == "size" else dimension]
            titled = rng.random() < share
            if titled:
                in_title.append(_say(rng, dimension, value) + " ''" * (dimension == "inches"))
            # Some of the title is told again, often in another word.
            if has_description and rng.random() < (0.3 if titled else 1):
                sentence = rng.choice(SENTENCES[dimension])
                sentences.append(sentence.format(_say(rng, dimension, value, usual=0.4)))
            if titled or has_description:
                attributes.setdefault(dimension, []).append(value)
    names = kind.names.split("|")
    name = names[0] if rng.random() < 0.6 else rng.choice(names)
    before = [phrase for phrase in in_title if phrase not in WITH_FEATURES]
    after = [f"with {phrase}" for phrase in in_title if phrase in WITH_FEATURES]
    title = " ".join([*attributes["series"], *before, name, *after])
    if has_description:
        rng.shuffle(sentences)
        sentences.insert(0, rng.choice(OPENINGS).format(rng.choice(names)))
        sentences += _other_products(rng, kind)
    return DemoProduct(product_id, kind, title, " ".join(sentences), attributes)


def _draw_attributes(rng: random.Random, kind: Kind) -> Attributes:
    """Draw what the product is like, in the order in which a title tells it."""
    sizes = kind.sizes.split("|")
    drawn: Attributes = {}
    if sizes[0].isdigit():
        low, high = map(int, sizes)
        inches = rng.randint(low, high)
        drawn["inches"] = [str(inches)]
        share = (inches - low) / (high - low)
        if not 1 / 3 < share < 2 / 3:
            drawn["size"] = ["small" if share < 0.5 else "large"]
    else:
        drawn["size"] = [rng.choice(sizes)]
    drawn["style"] = [rng.choice(list(words_of("style")))]
    drawn["colour"] = [rng.choice(list(words_of("colour")))]
    drawn["material"] = [rng.choice(kind.materials.split("|"))]
    features, rooms = kind.features.split("|"), kind.rooms.split("|")
    drawn["feature"] = rng.sample(features, min(len(features), rng.choice([0, 1, 1, 2])))
    drawn["room"] = rng.sample(rooms, min(len(rooms), rng.choice([1, 2])))
    return drawn


def _other_products(rng: random.Random, kind: Kind) -> list[str]:
    """Name what the product is not, as descriptions do: a trap for matching by words."""
    if rng.random() < 0.5:
        return []
    others = rng.sample([other for other in KINDS if other is not kind], 2)
    names = [rng.choice(other.names.split("|")) for other in others]
    colour = rng.choice(list(words_of("colour")))
    material = rng.choice(others[0].materials.split("|"))
    return [f"pairs well with our {colour} {material} {names[0]} or any {names[1]} ."]


def _say(rng: random.Random, dimension: str, value: str, usual: float = 0.7) -> str:
    """Choose a word for a value: the usual one with that probability, else any."""
    if dimension == "inches":
        return value
    phrases = words_of(dimension)[value]
    return phrases[0] if rng.random() < usual else rng.choice(phrases)


def _make_queries(
    rng: random.Random, products: list[DemoProduct], oracle: DemoOracle
) -> list[tuple[str, Kind]]:
    """Make queries that each ask for a product of the shop; some kinds are asked for often."""
    popularity = {kind.names: 1 / math.sqrt(rank) for rank, kind in enumerate(KINDS, start=1)}
    weights = [popularity[product.kind.names] for product in products]
    queries: dict[str, Kind] = {}
    while len(queries) < QUERIES:
        product = rng.choices(products, weights)[0]
        query = _make_query(rng, product)
        if len(query.split()) <= 6 and oracle.grade(query, product.product_id) == 2:
            queries.setdefault(query, product.kind)
    return list(queries.items())


def _make_query(rng: random.Random, product: DemoProduct) -> str:
    unasked = {"kind", "inches"} | ({"series"} if rng.random() < 0.7 else set())
    dimensions = [name for name in product.attributes if name not in unasked]
    count = min(rng.choices([0, 1, 2, 3], [3, 4, 3, 1])[0], len(dimensions))
    asked = {}
    for dimension in sorted(rng.sample(dimensions, count), key=list(product.attributes).index):
        value = rng.choice(product.attributes[dimension])
        wider = [p for p, values in WIDER.get(dimension, {}).items() if value in values.split("|")]
        named = [value] if dimension == "series" else words_of(dimension)[value]
        asked[dimension] = rng.choice([*named, *wider])
    noun = _kind_noun(rng, product.kind)
    if count > 1 and rng.random() < 0.06:
        return " ".join(asked.values())
    before, after = [], []
    for dimension, phrase in asked.items():
        if dimension == "feature" and phrase in WITH_FEATURES:
            after.append(f"with {phrase}")
        elif dimension == "room" and rng.random() < 0.4:
            after.append(f"for {phrase}")
        else:
            before.append(phrase)
    return " ".join([*before, noun, *after])


def _kind_noun(rng: random.Random, kind: Kind) -> str:
    if rng.random() < 0.25:
        return rng.choice(kind.wider.split("|"))
    noun = rng.choice(kind.names.split("|"))
    if rng.random() < 0.25 and not noun.endswith(("s", "y", "r frame")):
        return noun + ("es" if noun.endswith("ch") else "s")
    return noun


def _judge(
    rng: random.Random,
    products: list[DemoProduct],
    queries: list[tuple[str, Kind]],
    oracle: DemoOracle,
) -> list[list[object]]:
    """Judge for each query what shares its words, some of what is right, and some of the rest."""
    texts = [set(stems_of(f"{product.title} {product.description}")) for product in products]
    counts = Counter(word for text in texts for word in text)
    names = {grade: name for name, grade in GRADES.items()}
    rows: list[list[object]] = []
    for query_id, (query, _) in enumerate(queries):
        weight = {
            word: math.log(len(texts) / counts[word]) for word in stems_of(query) if counts[word]
        }
        score = [sum(weight[word] for word in weight if word in text) for text in texts]
        grades = [oracle.grade(query, product.product_id) or 0 for product in products]
        everything = list(range(len(products)))
        rng.shuffle(everything)
        exact = [place for place in everything if grades[place] == 2]
        partial = [place for place in everything if grades[place] == 1]
        # The shuffled order breaks ties: a short query has many products with the same words.
        near = sorted(everything, key=lambda place: -score[place])
        pool = near[:14]
        for group, count in ((exact, 6), (partial, 5), (everything, 6)):
            pool += [place for place in group if place not in pool][:count]
        for place in pool:
            rows.append([len(rows), query_id, products[place].product_id, names[grades[place]]])
    return rows


def _product_row(product: DemoProduct) -> list[str]:
    features = "|".join(
        f"{dimension}:{value}"
        for dimension, values in product.attributes.items()
        for value in values
    )
    kind = _class(product.kind)
    return [product.product_id, product.title, kind, product.description, features]


def _class(kind: Kind) -> str:
    return kind.names.split("|")[0].title()


def _write(path: Path, header: list[str], rows: list[list]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter="\t", lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)
