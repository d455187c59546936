"""Amazon's ESCI from tiny Parquet files: what is read, what is left out, what is refused."""

import logging

import pandas as pd
import pytest

from agr_trl.config import DataArguments, parse_recipe
from agr_trl.data import load_relevance_dataset
from agr_trl.data.esci import EXAMPLES, PRODUCTS, plain_text
from agr_trl.data.tables import BATCH_ROWS, parquet_batches
from agr_trl.errors import UserError
from agr_trl.stages import load_dataset

PRODUCT_COLUMNS = [
    "product_id", "product_title", "product_description", "product_bullet_point", "product_brand",
    "product_color", "product_locale",
]  # fmt: skip
EXAMPLE_COLUMNS = [
    "example_id", "query", "query_id", "product_id", "product_locale", "esci_label",
    "small_version", "large_version", "split",
]  # fmt: skip


def products():
    rows = [
        (
            "B1",
            "Oak desk",
            "<p>Solid&nbsp;oak.<br>120 cm</p>",
            "sturdy\nheavy",
            "Elm",
            "brown",
            "us",
        ),
        ("B1", "Escritorio", None, None, None, None, "es"),  # the same id in another locale
        ("B2", "Desk lamp", None, "with bulb", None, None, "us"),
        ("B3", "Lamp & shade", None, None, None, None, "us"),
        ("B4", "Never judged in small", None, None, None, None, "us"),
        ("B5", "Bulb", "<script", None, None, None, "us"),
    ]
    return pd.DataFrame(rows, columns=PRODUCT_COLUMNS)


def examples():
    rows = [
        (0, " oak desk ", 7, "B1", "us", "E", 1, 1, "train"),
        (1, " oak desk ", 7, "B2", "us", "C", 1, 1, "train"),
        (2, "lamp", 8, "B2", "us", "S", 1, 1, "test"),
        (3, "lamp", 8, "B3", "us", "I", 1, 1, "test"),
        (4, "bulb", 9, "B5", "us", "E", 1, 1, "train"),
        (5, "easy", 10, "B4", "us", "E", 0, 1, "train"),
        (6, "escritorio", 11, "B1", "es", "E", 1, 1, "train"),
    ]
    return pd.DataFrame(rows, columns=EXAMPLE_COLUMNS)


def write(folder, product_rows=None, example_rows=None):
    folder.mkdir(exist_ok=True, parents=True)
    (products() if product_rows is None else product_rows).to_parquet(folder / PRODUCTS)
    (examples() if example_rows is None else example_rows).to_parquet(folder / EXAMPLES)
    return folder


def load(folder, **options):
    return load_relevance_dataset("esci", folder, **({"dev_fraction": 0} | options))


def fails(message, folder, **options):
    with pytest.raises(UserError, match=message) as error:
        load(folder, **options)
    assert "\n" not in str(error.value)


def test_one_locale_of_the_small_version_is_read_as_plain_text(tmp_path):
    dataset = load(write(tmp_path))
    assert dataset.products["product_id"].tolist() == ["B1", "B2", "B3", "B5"]
    assert dataset.products["title"].tolist() == ["Oak desk", "Desk lamp", "Lamp & shade", "Bulb"]
    assert dataset.products["description"].tolist() == [
        "sturdy heavy Solid oak. 120 cm",
        "with bulb",
        "",
        "<script",
    ]
    assert dataset.queries.to_dict("list") == {
        "query_id": ["7", "8", "9"],
        "query": ["oak desk", "lamp", "bulb"],
    }
    judged = dataset.judgements
    assert judged["query_id"].tolist() == ["7", "7", "8", "8", "9"]
    assert judged["product_id"].tolist() == ["B1", "B2", "B2", "B3", "B5"]
    assert judged["grade"].tolist() == [3, 0, 1, 0, 3]  # E, C, S, I, E
    assert judged["label"].tolist() == [1.0, 0.0, 1.0, 0.0, 1.0]
    assert judged["split"].tolist() == ["train", "train", "test", "test", "train"]
    assert (dataset.has_ids, dataset.max_grade) == (True, 3)


def test_gains_come_close_to_the_published_ones(tmp_path):
    grades = load(write(tmp_path)).judgements["grade"]
    gains = (2**grades - 1).tolist()  # of E, C, S, I, E; published: 1, .01, .1, 0, 1
    assert [gain / 7 for gain in gains] == pytest.approx([1, 0.01, 0.1, 0, 1], abs=0.05)


def test_locale_version_and_relevant_grade_are_options(tmp_path):
    folder = write(tmp_path / "repository" / "shopping_queries_dataset").parent
    spanish = load(folder, esci_locale="es")
    assert spanish.documents == ["Escritorio"]
    assert spanish.judgements["query_id"].tolist() == ["11"]
    large = load(folder, esci_version="large")
    assert large.products["product_id"].tolist() == ["B1", "B2", "B3", "B4", "B5"]
    assert len(large.judgements) == 6
    exact = load(folder, relevant_grade=3)
    assert exact.judgements["label"].tolist() == [1.0, 0.0, 0.0, 0.0, 1.0]


def test_options_come_from_the_command_line(tmp_path):
    folder = write(tmp_path / "esci")
    config = tmp_path / "job.yaml"
    config.write_text(f"dataset_format: esci\ndataset_path: {folder}\ndev_fraction: 0\n")

    def parse(*words):
        return parse_recipe({"": (DataArguments,)}, "job.py", ["--config", str(config), *words])

    chosen = parse("--esci_locale=es", "--esci_version", "large")
    assert load_dataset(chosen[""].build()[0]).documents == ["Escritorio"]
    assert chosen.resolved()["esci_version"] == "large"
    # Left unset they are no setting of the run: runs begun before they existed still resume.
    assert not {"esci_locale", "esci_version"} & parse().resolved().keys()
    with pytest.raises(UserError, match="invalid choice: 'fr'"):
        parse("--esci_locale=fr")


def test_dev_is_split_off_train_by_query_and_test_stays(tmp_path):
    words = "abcdefghij"
    train = [
        (n, f"{word} desk", n, f"B{p}", "us", "E", 1, 1, "train")
        for n, word in enumerate(words)
        for p in (1, 2)
    ]
    rows = pd.concat([pd.DataFrame(train, columns=EXAMPLE_COLUMNS), examples().iloc[2:4]])
    rows.loc[rows["query"] == "lamp", "query_id"] = 99
    folder = write(tmp_path, example_rows=rows)
    first = load(folder, dev_fraction=None)
    sizes = first.judgements.groupby("split")["query_id"].nunique().to_dict()
    assert sizes == {"train": 8, "dev": 2, "test": 1}
    assert (first.judgements.groupby("query_id")["split"].nunique() == 1).all()
    assert first.pairs("test")["query"].tolist() == ["lamp", "lamp"]
    again, other = load(folder, dev_fraction=None), load(folder, dev_fraction=0.2, split_seed=4)
    pd.testing.assert_frame_equal(first.judgements, again.judgements)
    assert set(first.pairs("dev")["query"]) != set(other.pairs("dev")["query"])
    only = load(folder, dev_fraction=None, split="dev")
    pd.testing.assert_frame_equal(only.pairs("dev"), first.pairs("dev"))


def test_a_train_query_that_is_in_test_too_is_left_out_of_train(tmp_path, caplog):
    rows = examples()
    rows.loc[4, "query"] = "LAMP"
    with caplog.at_level(logging.WARNING):
        dataset = load(write(tmp_path, example_rows=rows))
    assert dataset.judgements["split"].tolist() == ["train", "train", "test", "test"]
    assert (
        "1 train queries are in test too, such as 'lamp'; their 1 train judgements" in caplog.text
    )
    assert dataset.products["product_id"].tolist() == ["B1", "B2", "B3"]


def test_a_product_without_text_is_left_out_with_its_judgements(tmp_path, caplog):
    rows = products()
    rows.loc[5, ["product_title", "product_description"]] = [None, "<br/> &nbsp;"]
    with caplog.at_level(logging.WARNING):
        dataset = load(write(tmp_path, rows))
    assert "1 products without any text are left out, with 1 judgements" in caplog.text
    assert dataset.products["product_id"].tolist() == ["B1", "B2", "B3"]
    assert dataset.judgements["query_id"].tolist() == ["7", "7", "8", "8"]


def test_a_repeated_judgement_counts_once_and_is_told(tmp_path, caplog):
    rows = pd.concat([examples(), examples().iloc[:1]])
    with caplog.at_level(logging.WARNING):
        assert len(load(write(tmp_path, example_rows=rows)).judgements) == 5
    assert "1 repeated judgements count once" in caplog.text
    rows.iloc[-1, EXAMPLE_COLUMNS.index("esci_label")] = "I"
    message = "row 8: `esci_label` is 'I'; an earlier row has another"
    fails(message, write(tmp_path, example_rows=rows))


@pytest.mark.parametrize(
    ("row", "column", "value", "message"),
    [
        (1, "esci_label", "Exact", "examples.parquet, row 2: `esci_label` is 'Exact'; .* E, S, C"),
        (1, "esci_label", None, "row 2: `esci_label` is nan"),
        (2, "split", "valid", "row 3: `split` is 'valid'; a split is train or test"),
        (2, "query", " ", "row 3: `query` is ''; give it a value"),
        (2, "query", None, "row 3: `query` is nan; give it a value"),
        (3, "query", "lamps", "row 4: `query` is 'lamps'; an earlier row has another text"),
        (3, "product_id", "B9", "row 4: `product_id` is 'B9'; .* no such product for locale us"),
    ],
)
def test_bad_examples_are_named(tmp_path, row, column, value, message):
    rows = examples()
    rows.loc[row, column] = value
    fails(message, write(tmp_path, example_rows=rows))


def test_bad_files_are_named(tmp_path):
    folder = write(tmp_path)
    fails("'B1'; an earlier row has the same id in locale us", write(
        tmp_path, pd.concat([products(), products().iloc[:1]])
    ))  # fmt: skip
    write(tmp_path, products().drop(columns="product_bullet_point"))
    fails("products.parquet has no column product_bullet_point; it has product_id, .*", folder)
    write(tmp_path, example_rows=examples().drop(columns="small_version"))
    fails("examples.parquet has no column small_version", folder)
    write(tmp_path, example_rows=examples().iloc[:0])
    fails("no example of locale us in the small version; its locales are none", folder)
    write(tmp_path)
    fails("no example of locale jp in the small version; its locales are es, us", folder,
          esci_locale="jp")  # fmt: skip
    fails("no split 'test'; this data set has train", folder, esci_locale="es", split="test")
    (folder / PRODUCTS).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    fails("products.parquet is not a Parquet file .*`git lfs pull`", folder)
    (folder / PRODUCTS).unlink()
    fails("products.parquet is missing; .* holds shopping_queries_dataset_examples", folder)


def test_wrong_options_are_named(tmp_path):
    folder = write(tmp_path)
    fails("esci_locale is 'fr'; it must be one of us, es, jp", folder, esci_locale="fr")
    fails("esci_version is 'tiny'; it must be one of small, large", folder, esci_version="tiny")
    fails("ESCI has a test split of its own", folder, test_fraction=0.1)
    fails("grades of this data set end at 3", folder, relevant_grade=4)
    with pytest.raises(UserError, match="belong to dataset_format esci; leave them out for beir"):
        load_relevance_dataset("beir", folder, esci_locale="us")
    with pytest.raises(UserError, match="esci needs a dataset_path"):
        load_relevance_dataset("esci")
    with pytest.raises(UserError, match="is a file; esci needs a folder"):
        load_relevance_dataset("esci", folder / EXAMPLES)


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("<ul><LI>one</LI><li class='x'>two</ul>", "one two"),
        ("salt &amp; pepper &#39;n&#39; <!-- no > yes --> oil", "salt & pepper 'n' oil"),
        ("size <M, >XS and 3 < 4", "size <M, >XS and 3 < 4"),
        ("  a\n\n b\tc ", "a b c"),
        ("&lt;b&gt;", "<b>"),
    ],
)
def test_plain_text(text, plain):
    assert plain_text(text) == plain


def test_rows_are_counted_over_batches(tmp_path):
    path = tmp_path / "long.parquet"
    pd.DataFrame({"a": range(BATCH_ROWS + 2), "b": "unread"}).to_parquet(path)
    batches = list(parquet_batches(path, ["a"]))
    assert [len(rows) for rows in batches] == [BATCH_ROWS, 2]
    assert batches[1].to_dict("list") == {"a": [BATCH_ROWS, BATCH_ROWS + 1]}
    assert batches[1].index.tolist() == [BATCH_ROWS + 1, BATCH_ROWS + 2]
    assert batches[1].index.name == "row"
