"""Splits by query: variants together, fixed by the seed, whatever the order."""

import random
import time

import pandas as pd
import pytest

from agr_trl.data.splits import query_groups, split_queries, variant_key
from agr_trl.errors import UserError


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("smart watch", "smartwatch"),
        ("head set", "headset"),
        ("laptop", "Laptops"),
        ("battery", "batteries"),
        ("vase", "vases"),
        ("boxes", "box"),
        ("bookshelves", "book shelf"),
        ("men's chair", "mens chairs"),
        ("l-shaped desk", "l shaped desk"),
        ("table lamp", "tablelamps"),
        ("cabinet shelves", "cabinet shelf"),
        ("3/4 size mattress", "3 4 size mattresses"),
        ("décor", "decor"),
    ],
)
def test_variants_share_a_key(first, second):
    assert variant_key(first) == variant_key(second)


@pytest.mark.parametrize(
    ("first", "second"), [("sofa bed", "bed sofa"), ("glass", "gas"), ("red chair", "bed chair")]
)
def test_other_queries_have_other_keys(first, second):
    assert variant_key(first) != variant_key(second)


def test_query_without_letters_keeps_itself_as_key():
    assert variant_key(" ?! ") == "?!"


@pytest.mark.parametrize(
    ("first", "second", "together"),
    [
        ("bicycle stand", "bicyccle stand", True),  # one letter more
        ("fountains", "foutains", True),  # one letter less
        ("light bulb lamp", "ligth bulb lamp", True),  # two letters swapped
        ("dining table", "dinimg table", True),  # one letter replaced
        ("30 inch vanity", "36 inch vanity", False),  # a digit is meant
        ("12 light lamp", "21 light lamp", False),
        ("lamp", "lamb", False),  # too short to be a typo for sure
        ("green desk chair", "great desk chair", False),  # two letters
    ],
)
def test_typos_of_long_queries_are_grouped(first, second, together):
    one, other = query_groups([first, second])
    assert (one == other) is together


def test_groups_chain_and_do_not_depend_on_order():
    queries = ["dining table", "dinning table", "dinning tabel", "sofa", "sofas"]
    groups = dict(zip(queries, query_groups(queries), strict=True))
    assert groups["dining table"] == groups["dinning table"] == groups["dinning tabel"]
    assert groups["sofa"] == groups["sofas"] != groups["dining table"]
    backwards = dict(zip(queries[::-1], query_groups(queries[::-1]), strict=True))
    assert backwards == groups


def _queries(count: int) -> pd.Series:
    rng = random.Random(7)
    letters = "abdfgklmnoprt"  # no letter that could make or look like a plural ending
    texts: dict[str, None] = {}
    while len(texts) < count:
        words = ["".join(rng.choices(letters, k=rng.randint(3, 7))) for _ in range(2)]
        texts[" ".join(words)] = None
    return pd.Series(list(texts))


def test_split_has_the_stated_shares_and_ignores_order():
    queries = _queries(200)
    split = split_queries(queries, dev_fraction=0.25, test_fraction=0.3, seed=3)
    assert split.value_counts().to_dict() == {"train": 90, "test": 60, "dev": 50}
    shuffled = queries.sample(frac=1, random_state=1)
    again = split_queries(shuffled, dev_fraction=0.25, test_fraction=0.3, seed=3)
    pd.testing.assert_series_equal(again.sort_index(), split)


def test_split_depends_on_the_seed_alone():
    queries = _queries(200)
    first = split_queries(queries, 0.2, 0.2, seed=0)
    assert first.equals(split_queries(queries, 0.2, 0.2, seed=0))
    assert not first.equals(split_queries(queries, 0.2, 0.2, seed=1))


@pytest.mark.parametrize("seed", range(5))
def test_no_variant_crosses_splits(seed):
    queries = _queries(100)
    variants = pd.concat(
        [queries, queries + "s", queries.str.replace(" ", ""), queries.str.replace(" ", "-")],
        ignore_index=True,
    )
    split = split_queries(variants, 0.3, 0.3, seed)
    groups = pd.Series(query_groups(list(variants)))
    assert (split.groupby(groups).nunique() == 1).all()
    assert (split.groupby(variants.index % 100).nunique() == 1).all()


def test_no_dev_and_no_test_is_all_train():
    assert set(split_queries(_queries(9), 0, 0, seed=0)) == {"train"}


@pytest.mark.parametrize(("dev", "test"), [(-0.1, 0.2), (0.5, 0.5), (0.2, 1.0)])
def test_impossible_fractions_are_refused(dev, test):
    with pytest.raises(UserError, match="sum to less than 1"):
        split_queries(_queries(5), dev, test, seed=0)


def test_grouping_is_linear_enough_for_many_queries():
    queries = list(_queries(20_000))
    start = time.process_time()
    query_groups(queries)
    assert time.process_time() - start < 10
