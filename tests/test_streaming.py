"""A catalogue read product by product gives what the whole data set gives."""

import json

import datasets
import pandas as pd
import pytest
from toy_runs import write_beir, write_pairs

from agr_trl.data import files_fingerprint, load_relevance_dataset, stream_prompts
from agr_trl.errors import UserError


def rows_of(dataset_format, path):
    stream = stream_prompts(dataset_format, str(path))
    assert isinstance(stream, datasets.IterableDataset)
    return pd.DataFrame(list(stream))


def test_a_beir_catalogue_streams_as_it_loads(tmp_path):
    shop = write_beir(tmp_path / "shop")
    with (shop / "corpus.jsonl").open("a") as corpus:
        corpus.write('\n{"_id": 7, "title": " lamp ", "text": "for\\nreading"}\n')
        corpus.write('{"_id": "x", "text": "no title", "price": 3}\n')
    with (shop / "corpus.jsonl").open("a") as corpus:
        corpus.write('{"_id": "blank", "title": " "}\n')  # left out by both
    loaded = load_relevance_dataset("beir", shop).prompts()
    streamed = rows_of("beir", shop)
    pd.testing.assert_frame_equal(streamed, loaded, check_dtype=False)
    assert streamed["prompt"].tolist()[-2] == "Title: lamp - Description: for\nreading"


@pytest.mark.parametrize("suffix", ["parquet", "jsonl"])
def test_pairs_stream_as_they_load(suffix, tmp_path):
    folder = write_pairs(tmp_path / "pairs")
    for split in ("train", "dev"):
        table = pd.read_csv(folder / f"{split}.csv")
        table.loc[3, "document"] = f" {split} only "
        (folder / f"{split}.csv").unlink()
        if suffix == "parquet":
            table.to_parquet(folder / f"{split}.parquet")
        else:
            table.to_json(folder / f"{split}.jsonl", orient="records", lines=True)
    loaded = load_relevance_dataset("pairs", folder).prompts()
    assert len(loaded) == 22
    pd.testing.assert_frame_equal(rows_of("pairs", folder), loaded, check_dtype=False)
    one = folder / f"dev.{suffix}"
    loaded = load_relevance_dataset("pairs", one, split="dev").prompts()
    pd.testing.assert_frame_equal(rows_of("pairs", one), loaded, check_dtype=False)


def test_only_what_is_asked_for_is_read(tmp_path):
    lines = [f'{{"_id": "{name}", "title": "lamp"}}' for name in "abc"]
    (tmp_path / "corpus.jsonl").write_text("\n".join([*lines, "not JSON"]))
    stream = stream_prompts("beir", str(tmp_path))
    assert [row["product_id"] for row in stream.take(1)] == ["a"]
    with pytest.raises(UserError, match=r"corpus.jsonl, line 4: broken JSON"):
        list(stream)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"title": "lamp"}, "line 1: no field `_id`"),
        ({"_id": "a", "title": 3}, "line 1: `title` is 3"),
        ({"_id": "", "title": "b"}, "line 1: a product needs an _id"),
    ],
)
def test_rows_that_are_no_products_are_named(row, message, tmp_path):
    (tmp_path / "corpus.jsonl").write_text(json.dumps(row))
    with pytest.raises(UserError, match=message):
        rows_of("beir", tmp_path)


def test_what_cannot_be_streamed_is_refused(tmp_path):
    with pytest.raises(UserError, match="reads beir and pairs, not wands"):
        stream_prompts("wands", str(tmp_path))
    with pytest.raises(UserError, match="does not exist"):
        stream_prompts("beir", None)
    folder = write_pairs(tmp_path / "pairs")
    with pytest.raises(UserError, match=r"reads .parquet and .jsonl, not .*train.csv"):
        rows_of("pairs", folder)
    pd.DataFrame({"document": ["a", None]}).to_parquet(tmp_path / "p.parquet")
    with pytest.raises(UserError, match="row 2: `document` is"):
        rows_of("pairs", tmp_path / "p.parquet")


def test_the_fingerprint_is_of_the_catalogue_alone(tmp_path):
    shop = write_beir(tmp_path / "shop")
    before = files_fingerprint("beir", str(shop))
    (shop / "queries.jsonl").write_text("")
    assert files_fingerprint("beir", str(shop)) == before
    with (shop / "corpus.jsonl").open("a") as corpus:
        corpus.write("\n")
    assert files_fingerprint("beir", str(shop)) != before
