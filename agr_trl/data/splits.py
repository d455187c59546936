"""Split by query, so that no query and no spelling of it is in two splits."""

import hashlib
import re
import unicodedata
from collections.abc import Sequence

import pandas as pd

from agr_trl.errors import UserError

SPLITS = ("train", "dev", "test")

# Longest ending first. "ves" has no rule: gloves and shelves differ, so only sure endings are here.
PLURAL_ENDINGS = {
    "sses": "ss",
    "ches": "ch",
    "shes": "sh",
    "elves": "elf",
    "eaves": "eaf",
    "nives": "nife",
    "xes": "x",
    "ies": "y",
    "ss": "ss",
    "us": "us",
    "is": "is",
    "s": "",
}
IRREGULAR_PLURALS = {"men": "man", "women": "woman", "children": "child", "feet": "foot"}


def variant_key(query: str) -> str:
    """Map a query and its plural and spacing variants to one string, word order kept.

    Lower case; accents, punctuation, hyphens and spaces removed; each word in the singular:
    "Smart-Watches" and "smartwatch" are both "smartwatch".
    """
    text = unicodedata.normalize("NFKD", query.casefold())
    text = "".join(character for character in text if not unicodedata.combining(character))
    words = re.findall(r"[^\W_]+", text.replace("'", ""))
    return "".join(stem(word) for word in words) or text.strip()


def stem(word: str) -> str:
    """Reduce an English plural to its singular, or to what comes close ("movies": "movy")."""
    if word in IRREGULAR_PLURALS:
        return IRREGULAR_PLURALS[word]
    if len(word) < 4:
        return word
    for ending, singular in PLURAL_ENDINGS.items():
        if word.endswith(ending):
            return IRREGULAR_PLURALS.get(word[:-1], word.removesuffix(ending) + singular)
    return word


def query_groups(
    queries: Sequence[str], min_typo_characters: int = 8, max_typo_characters: int = 200
) -> list[str]:
    """Name each query's group of variants; queries of one name belong in one split.

    Variants share their `variant_key`, or their keys are one inserted, deleted, replaced or
    swapped letter apart (Damerau 1964, distance 1) and the longer key has `min_typo_characters` or
    more, but no more than `max_typo_characters`: the work grows with their square. A digit is never
    a typo: "30 inch vanity" and "36 inch vanity" stay apart. A group is named by its alphabetically
    first key, whatever the order of the queries.
    """
    key_of_query = [variant_key(query) for query in queries]
    keys = sorted(set(key_of_query))
    parent = {key: key for key in keys}

    def find(key: str) -> str:
        while parent[key] != key:
            parent[key] = parent[parent[key]]
            key = parent[key]
        return key

    def unite(first: str, second: str) -> None:
        low, high = sorted((find(first), find(second)))
        parent[high] = low

    # Linear in the text: two keys one letter apart meet in a key with that letter masked or gone.
    masked: dict[str, str] = {}
    for key in keys:
        if not min_typo_characters <= len(key) <= max_typo_characters:
            continue
        for i, letter in enumerate(key):
            if letter.isdigit():
                continue
            unite(key, masked.setdefault(f"{key[:i]}\0{key[i + 1 :]}", key))
            shorter = key[:i] + key[i + 1 :]
            if shorter in parent:
                unite(key, shorter)
            swapped = key[:i] + key[i + 1 : i + 2] + letter + key[i + 2 :]
            if not key[i + 1 : i + 2].isdigit() and swapped in parent:
                unite(key, swapped)
    return [find(key) for key in key_of_query]


def split_queries(
    queries: pd.Series, dev_fraction: float, test_fraction: float, seed: int | str
) -> pd.Series:
    """Assign "train", "dev" or "test" to each query text, variants together.

    Fixed by the seed and the set of texts, whatever their order. Each of dev and test gets the
    stated share of the queries, give or take one group of variants. Raises `UserError` unless the
    fractions are at least 0 and leave something for train.
    """
    if min(dev_fraction, test_fraction) < 0 or dev_fraction + test_fraction >= 1:
        raise UserError(
            f"dev_fraction {dev_fraction} and test_fraction {test_fraction} must be at least 0 "
            "and sum to less than 1"
        )
    groups, start = _shuffled_groups(queries, seed)
    split = pd.Series("train", index=start.index)
    split[start < round((dev_fraction + test_fraction) * len(queries))] = "dev"
    split[start < round(test_fraction * len(queries))] = "test"
    return groups.map(split)


def fold_queries(queries: pd.Series, folds: int, seed: int) -> pd.Series:
    """Assign a fold, 0 to `folds` - 1, to each query text, variants together.

    Fixed by the seed and the set of texts. Folds have the same number of queries, give or take one
    group of variants. Raises `UserError` for fewer than two folds or fewer queries than folds.
    """
    if not 2 <= folds <= len(queries):
        raise UserError(
            f"`folds` is {folds}; it must be from 2 to the number of queries, {len(queries)}"
        )
    groups, start = _shuffled_groups(queries, seed)
    return groups.map(start * folds // len(queries)).astype(int)


def _shuffled_groups(queries: pd.Series, seed: int | str) -> tuple[pd.Series, pd.Series]:
    """Return each query's group of variants; of each group, the queries before it in a shuffle."""
    groups = pd.Series(query_groups(list(queries)), index=queries.index)
    sizes = groups.value_counts()
    order = sorted(
        sizes.index, key=lambda name: hashlib.sha256(f"{seed}\0{name}".encode()).digest()
    )
    return groups, sizes[order].cumsum() - sizes[order]
