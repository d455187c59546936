"""WANDS, BEIR and pairs: right input is read exactly, wrong input is named by file and line."""

import json
import logging

import pandas as pd
import pytest

from agr_trl.data import RelevanceDataset, document_text, load_relevance_dataset, prompt_text
from agr_trl.errors import UserError

PRODUCTS = """product_id\tproduct_name\tproduct_class\tproduct_description\trating_count
0\tsolid wood platform bed\tBeds\tgood , deep sleep\t15.0
1\tfletcher 27.5 '' wide armchair\tTeen Furniture|Accent Chairs\t\t
2\t48" desk\t\ta stray " quote "\t3.0
3\t"60"" sofa"\tSofas\t"a ""quoted"" text"\t3.0
"""
QUERIES = '''query_id\tquery\tquery_class
5\tarmchair\tAccent Chairs
7\t"writing desk 48"""\tDesks
'''
LABELS = """id\tquery_id\tproduct_id\tlabel
0\t5\t1\tExact
1\t5\t0\tIrrelevant
2\t7\t2\tPartial
"""


@pytest.fixture
def wands(tmp_path):
    folder = tmp_path / "wands"
    folder.mkdir()
    (folder / "product.csv").write_text(PRODUCTS)
    (folder / "query.csv").write_text(QUERIES)
    (folder / "label.csv").write_text(LABELS)
    return folder


def _jsonl(path, *records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


@pytest.fixture
def beir(tmp_path):
    folder = tmp_path / "beir"
    (folder / "qrels").mkdir(parents=True)
    _jsonl(
        folder / "corpus.jsonl",
        {"_id": "a", "title": "lamp", "text": "a lamp", "metadata": {"price": 3}},
        {"_id": "b", "title": "desk", "text": ""},
        {"_id": "c", "text": "only text"},
    )
    _jsonl(
        folder / "queries.jsonl",
        {"_id": "1", "text": "lamp"},
        {"_id": "2", "text": "table"},
        {"_id": "3", "text": "never judged"},
    )
    header = "query-id\tcorpus-id\tscore\n"
    (folder / "qrels" / "train.tsv").write_text(header + "1\ta\t3\n1\tb\t0\n")
    (folder / "qrels" / "dev.tsv").write_text(header + "2\tb\t1\n")
    return folder


@pytest.fixture
def pairs(tmp_path):
    folder = tmp_path / "pairs"
    folder.mkdir()
    (folder / "train.csv").write_text(
        'query,document,label\nlamp,"lamp, red",1\nlamp,desk,0.2\nsofa,desk,0\n'
    )
    (folder / "dev.csv").write_text("query,document,label\ndesk,desk,0.5\n")
    return folder


def _fails(message, dataset_format, path, **options):
    with pytest.raises(UserError, match=message) as error:
        load_relevance_dataset(dataset_format, path, **options)
    assert "\n" not in str(error.value)


def test_document_and_prompt_text():
    assert document_text("lamp", "red one") == "lamp red one"
    assert document_text("lamp", "") == "lamp"
    assert prompt_text("lamp", "red one") == "Title: lamp - Description: red one"
    assert prompt_text("lamp", "") == "Title: lamp - Description:"


def test_wands_is_read_with_its_quotes(wands):
    dataset = load_relevance_dataset("wands", wands, dev_fraction=0, test_fraction=0)
    assert dataset.products["product_id"].tolist() == ["0", "1", "2", "3"]
    assert dataset.products["title"].tolist() == [
        "solid wood platform bed",
        "fletcher 27.5 '' wide armchair",
        '48" desk',
        '60" sofa',
    ]
    assert dataset.products["description"].tolist() == [
        "good , deep sleep",
        "",
        'a stray " quote "',
        'a "quoted" text',
    ]
    assert dataset.products["product_class"][1] == "Teen Furniture|Accent Chairs"
    assert dataset.queries["query"].tolist() == ["armchair", 'writing desk 48"']
    assert dataset.documents[1] == "fletcher 27.5 '' wide armchair"
    pairs = dataset.pairs("train")
    assert list(pairs) == ["query_id", "product_id", "query", "document", "label", "grade"]
    assert pairs["grade"].tolist() == [2, 0, 1]
    assert pairs["label"].tolist() == [1.0, 0.0, 1.0]
    assert pairs["document"][2] == '48" desk a stray " quote "'
    assert (dataset.has_ids, dataset.max_grade) == (True, 2)
    prompts = dataset.prompts()
    assert prompts["prompt"][0] == "Title: solid wood platform bed - Description: good , deep sleep"
    assert len(prompts) == 4


def test_wands_relevant_grade_and_outer_folder(wands):
    (wands / "dataset").mkdir()
    for name in ("product.csv", "query.csv", "label.csv"):
        (wands / name).rename(wands / "dataset" / name)
    dataset = load_relevance_dataset(
        "wands", wands, relevant_grade=2, dev_fraction=0, test_fraction=0
    )
    assert dataset.judgements["label"].tolist() == [1.0, 0.0, 0.0]
    _fails("must be from 1 to 2", "wands", wands, relevant_grade=3)
    _fails("must be from 1 to 2", "wands", wands, relevant_grade=0)


def test_wands_quoted_field_may_span_lines(wands):
    path = wands / "product.csv"
    path.write_text(PRODUCTS.replace("good , deep sleep", '"two\nlines"'))
    dataset = load_relevance_dataset("wands", wands, dev_fraction=0, test_fraction=0)
    assert dataset.products["description"][0] == "two\nlines"


def test_long_descriptions_are_read(tmp_path):
    # csv alone refuses a field of more than 131,072 characters.
    text = "very " * 40_000 + "long"
    (tmp_path / "train.csv").write_text(f"query,document,label\noak bed,{text},1\n")
    dataset = load_relevance_dataset("pairs", tmp_path / "train.csv")
    assert dataset.products["title"].tolist() == [text]


def test_wands_splits_by_query(wands):
    rows = [f"{q}\t{word} query\tX" for q, word in enumerate("abcdefghij")]
    (wands / "query.csv").write_text("query_id\tquery\tquery_class\n" + "\n".join(rows))
    labels = [f"{q}\t{q}\t{p}\tExact" for q in range(10) for p in range(2)]
    (wands / "label.csv").write_text("id\tquery_id\tproduct_id\tlabel\n" + "\n".join(labels))
    whole = load_relevance_dataset("wands", wands)
    sizes = whole.judgements.groupby("split")["query_id"].nunique().to_dict()
    assert sizes == {"train": 6, "dev": 2, "test": 2}
    assert (whole.judgements.groupby("query_id")["split"].nunique() == 1).all()
    only_test = load_relevance_dataset("wands", wands, split="test")
    pd.testing.assert_frame_equal(only_test.pairs("test"), whole.pairs("test"))
    assert set(only_test.judgements["split"]) == {"test"}


def test_repeated_judgement_counts_once_unless_it_contradicts(wands):
    (wands / "label.csv").write_text(LABELS + "3\t5\t1\tExact\n")
    dataset = load_relevance_dataset("wands", wands, dev_fraction=0, test_fraction=0)
    assert len(dataset.judgements) == 3
    (wands / "label.csv").write_text(LABELS + "3\t5\t1\tPartial\n")
    _fails(r"label.csv, line 5: `label` is 'Partial'; an earlier row has another", "wands", wands)


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("label.csv", "Partial", "Maybe", r"line 4: `label` is 'Maybe'; .* Exact"),
        ("label.csv", "7\t2", "8\t2", r"line 4: `query_id` is '8'; .* query.csv"),
        ("label.csv", "7\t2", "7\t9", r"line 4: `product_id` is '9'; .* product.csv"),
        ("label.csv", "label\n", "grade\n", r"label.csv has no column label; .* grade"),
        ("label.csv", LABELS.partition("\n")[2], "", "label.csv holds no judgement"),
        ("label.csv", LABELS, LABELS.replace("\t", ","), "looks comma-separated where tabs"),
        ("label.csv", "7\t2\tPartial", "7\t2", "line 4: 3 fields where the header has 4"),
        ("product.csv", "\n1\t", "\n0\t", r"product.csv, line 3: `product_id` is '0'; .* same id"),
        ("product.csv", "solid wood platform bed", " ", "line 2: `product_name` is ''"),
        ("query.csv", "armchair", "", "query.csv, line 2: `query` is ''"),
        ("query.csv", "\n7\t", "\n5\t", "query.csv, line 3: `query_id` is '5'"),
        ("query.csv", QUERIES, "", "query.csv is empty"),
        ("query.csv", "query_class", "query", "names a column twice"),
    ],
)
def test_bad_wands_is_named(wands, name, old, new, message):
    text = (wands / name).read_text()
    assert old in text
    (wands / name).write_text(text.replace(old, new, 1))
    _fails(message, "wands", wands)


def test_wands_that_is_not_utf8_or_not_there(wands):
    (wands / "query.csv").write_bytes(QUERIES.encode() + "8\tdécor\tX\n".encode("latin-1"))
    _fails("query.csv, line 4: byte 0xe9 is not UTF-8", "wands", wands)
    (wands / "query.csv").unlink()
    _fails("query.csv is missing; .* holds label.csv, product.csv", "wands", wands)


def test_beir_is_read(beir):
    dataset = load_relevance_dataset("beir", beir, relevant_grade=2)
    assert dataset.documents == ["lamp a lamp", "desk", "only text"]
    assert dataset.queries["query"].tolist() == ["lamp", "table", "never judged"]
    assert dataset.judgements["split"].tolist() == ["train", "train", "dev"]
    assert dataset.judgements["label"].tolist() == [1.0, 0.0, 0.0]
    assert dataset.max_grade == 3
    dev = load_relevance_dataset("beir", beir, split="dev")
    assert dev.pairs("dev")["query"].tolist() == ["table"]
    assert len(dev.products) == 3
    with pytest.raises(UserError, match="this data set has dev"):
        dev.pairs("train")


def test_products_without_any_text_are_left_out(beir, caplog):
    whole = load_relevance_dataset("beir", beir)
    with (beir / "corpus.jsonl").open("a") as corpus:
        corpus.write('{"_id": "blank", "title": " ", "text": ""}\n')
    with (beir / "qrels" / "train.tsv").open("a") as qrels:
        qrels.write("1\tblank\t1\n")
    with caplog.at_level(logging.WARNING):
        dataset = load_relevance_dataset("beir", beir)
    assert "1 products without any text are left out, with 1 judgements" in caplog.text
    assert dataset.fingerprint() == whole.fingerprint()
    (beir / "qrels" / "dev.tsv").unlink()
    (beir / "qrels" / "train.tsv").write_text("query-id\tcorpus-id\tscore\n1\tblank\t1\n")
    _fails("no judged product has a title or a text", "beir", beir)


def test_beir_without_the_split_is_refused(beir):
    _fails("no split 'test'; this data set has train, dev", "beir", beir, split="test")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("corpus.jsonl", '{"_id": "a", "title": "x"}\n{"_id": ', "line 2: broken JSON"),
        ("corpus.jsonl", '{"title": "x"}\n', "line 1: no field `_id`"),
        ("corpus.jsonl", '{"_id": "a", "title": 3}\n', "line 1: `title` is 3; it must be a text"),
        ("corpus.jsonl", '{"_id": "a", "text": " "}\n', "no product has a title or a text"),
        ("corpus.jsonl", '["a"]\n', "line 1: not a JSON object"),
        ("corpus.jsonl", "\n", "corpus.jsonl is empty"),
        ("queries.jsonl", '{"_id": "1", "text": "a"}\n' * 2, "line 2: `query_id` is '1'"),
        ("queries.jsonl", '{"_id": "1"}\n', "line 1: `query` is ''"),
        ("qrels/dev.tsv", "query-id\tcorpus-id\tscore\n2\tb\t1.5\n", "line 2: `score` is '1.5'"),
        ("qrels/dev.tsv", "query-id\tcorpus-id\tscore\n2\tz\t1\n", "`product_id` is 'z'"),
        ("qrels/dev.tsv", "query-id\tcorpus-id\tscore\n9\tb\t1\n", "`query_id` is '9'"),
        ("qrels/dev.tsv", "query-id\tcorpus-id\tscore\n", "dev.tsv holds no judgement"),
        ("qrels/dev.tsv", "query-id,corpus-id,score\n", "looks comma-separated"),
        ("qrels/dev.tsv", "query-id\tcorpus-id\tscore\n1\tc\t1\n", "'lamp' is in dev and train"),
    ],
)
def test_bad_beir_is_named(beir, name, text, message):
    (beir / name).write_text(text)
    _fails(message, "beir", beir)


def test_beir_without_qrels_is_refused(beir):
    for path in (beir / "qrels").iterdir():
        path.unlink()
    _fails("holds none of train.tsv, dev.tsv, test.tsv", "beir", beir)


def test_pairs_folder_is_read(pairs):
    dataset = load_relevance_dataset("pairs", pairs)
    assert dataset.products["title"].tolist() == ["lamp, red", "desk"]
    assert dataset.queries["query"].tolist() == ["lamp", "sofa", "desk"]
    assert dataset.pairs("train")["label"].tolist() == [1.0, 0.2, 0.0]
    assert dataset.pairs("dev")["grade"].tolist() == [1]
    assert dataset.pairs("dev")["document"].tolist() == ["desk"]
    assert (dataset.has_ids, dataset.max_grade) == (False, 1)
    # The catalogue is that of all splits, whichever is asked for.
    assert len(load_relevance_dataset("pairs", pairs, split="dev").products) == 2
    _fails("no split 'test'; this data set has train, dev", "pairs", pairs, split="test")


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_one_file_of_pairs_is_the_split_asked_for(tmp_path, suffix, caplog):
    frame = pd.DataFrame(
        {
            "query": [f"query {letter}" for letter in "abcde"],
            "document": ['48" desk'] * 5,
            "label": [0, 1, 0.5, 0.25, 1],
        }
    )
    path = tmp_path / f"judged{suffix}"
    if suffix == ".jsonl":
        frame.to_json(path, orient="records", lines=True)
    elif suffix == ".parquet":
        frame.to_parquet(path)
    else:
        frame.to_csv(path, index=False, sep="\t" if suffix == ".tsv" else ",")
    with caplog.at_level(logging.INFO):
        asked = load_relevance_dataset("pairs", path, split="dev")
    assert f"{path} is one file: all its pairs count as dev" in caplog.text
    _fails("all of which is the split dev; leave", "pairs", path, split="dev", dev_fraction=0.5)
    assert asked.pairs("dev")["label"].tolist() == [0, 1, 0.5, 0.25, 1]
    assert asked.documents == ['48" desk']
    sizes = load_relevance_dataset("pairs", path).judgements["split"].value_counts().to_dict()
    assert sizes == {"train": 3, "dev": 1, "test": 1}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("query,document,label\na,b,1.5\n", "line 2: `label` is '1.5'; .* from 0 to 1"),
        ("query,document,label\na,b,yes\n", "line 2: `label` is 'yes'"),
        ("query,document,label\na,b,nan\n", "line 2: `label` is 'nan'"),
        ("query,document,label\na,b,1\n ,b,1\n", "line 3: `query` is ''"),
        ("query,document,label\na,,1\n", "line 2: `document` is ''"),
        ("query,document,label\na,b,1\na,b,0\n", "line 3: `label` is 0.0; an earlier row"),
        ("query,document\na,b\n", "no column label"),
        ("query\tdocument\tlabel\na\tb\t1\n", "looks tab-separated where commas are expected"),
        ('query,document,label\n"a" b,c,1\n', "line 2: .* inner quote doubled"),
        ("query,document,label\n", "holds no pair"),
    ],
)
def test_bad_pairs_are_named(tmp_path, text, message):
    path = tmp_path / "pairs.csv"
    path.write_text(text)
    _fails(message, "pairs", path)


def test_bad_pairs_of_other_kinds_are_named(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"query": "a", "document": 3, "label": 1}\n')
    _fails("line 1: `document` is 3; it must be a text", "pairs", path)
    path.write_text('{"query": "a", "label": 1}\n')
    _fails("line 1: no field document", "pairs", path)
    path = tmp_path / "pairs.parquet"
    path.write_text("not parquet")
    _fails("is not a Parquet file", "pairs", path)
    frame = pd.DataFrame({"query": ["a", "b"], "document": ["c", None], "label": [1, 0]})
    frame.to_parquet(path)
    _fails("row 2: `document` is .*; it must be a text", "pairs", path)
    frame.drop(columns="label").to_parquet(path)
    _fails("has no column label; it has query, document", "pairs", path)
    path = tmp_path / "pairs.txt"
    path.write_text("")
    _fails("is none of .csv", "pairs", path)


def test_pairs_folder_with_a_query_in_two_splits(pairs, caplog):
    (pairs / "dev.csv").write_text("query,document,label\nLamp,desk,1\n")
    _fails("query 'lamp' is in dev and train", "pairs", pairs)
    (pairs / "dev.csv").write_text("query,document,label\nlamps,desk,1\n")
    _fails("has splits of its own; leave dev_fraction", "pairs", pairs, dev_fraction=0.3)
    _fails("has splits of its own; leave dev_fraction", "pairs", pairs, test_fraction=0.1)
    with caplog.at_level(logging.WARNING):
        load_relevance_dataset("pairs", pairs)
    assert "variant in another split" in caplog.text


def test_pairs_folder_with_two_files_or_none(pairs, tmp_path):
    (pairs / "dev.tsv").write_text("query\tdocument\tlabel\na\tb\t1\n")
    _fails("holds dev.csv and dev.tsv; keep one file a split", "pairs", pairs)
    empty = tmp_path / "empty"
    empty.mkdir()
    _fails("holds none of train.csv, dev.csv, test.csv", "pairs", empty)


def test_dev_is_taken_from_train_where_a_source_has_none(tmp_path):
    folder = tmp_path / "pairs"
    folder.mkdir()
    words = ["lamp", "sofa", "desk", "rug", "bed"]
    train = "".join(f"{word},a {word},1\n{word},a chair,0\n" for word in words)
    (folder / "train.csv").write_text(f"query,document,label\n{train}")
    (folder / "test.csv").write_text("query,document,label\nchair,a chair,1\n")
    dataset = load_relevance_dataset("pairs", folder)
    with pytest.raises(UserError, match=r"has train, test; `--dev_fraction 0\.2` takes dev"):
        dataset.pairs("dev")
    _fails("leave dev_fraction", "pairs", folder, dev_fraction=0.4, test_fraction=0.2)

    split = load_relevance_dataset("pairs", folder, dev_fraction=0.4)
    queries = {name: set(split.pairs(name)["query"]) for name in ("train", "dev", "test")}
    assert len(queries["dev"]) == 2
    assert len(split.pairs("dev")) == 4
    assert queries["train"] | queries["dev"] == set(words)
    assert not queries["train"] & queries["dev"]
    assert queries["test"] == {"chair"}
    only = load_relevance_dataset("pairs", folder, split="dev", dev_fraction=0.4)
    assert set(only.pairs("dev")["query"]) == queries["dev"]
    other = load_relevance_dataset("pairs", folder, dev_fraction=0.4, split_seed=1)
    assert set(other.pairs("dev")["query"]) != queries["dev"]


def test_wrong_arguments_are_named(tmp_path):
    _fails("'csv'; it must be one of wands, esci, beir, pairs, demo", "csv", tmp_path)
    _fails("'valid'; it must be one of train, dev, test", "pairs", tmp_path, split="valid")
    _fails("pairs needs a dataset_path", "pairs", None)
    _fails("does not exist", "beir", tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    _fails("is a file; beir needs a folder", "beir", tmp_path / "file")


def test_fingerprint_tells_content_not_place(wands, tmp_path):
    options = {"dev_fraction": 0, "test_fraction": 0}
    first = load_relevance_dataset("wands", wands, **options).fingerprint()
    moved = wands.rename(tmp_path / "moved")
    assert load_relevance_dataset("wands", moved, **options).fingerprint() == first
    (moved / "label.csv").write_text(LABELS.replace("Partial", "Exact"))
    assert load_relevance_dataset("wands", moved, **options).fingerprint() != first


def test_dataset_can_be_built_by_hand():
    dataset = RelevanceDataset(
        pd.DataFrame({"product_id": ["p"], "title": ["lamp"], "description": [""]}),
        pd.DataFrame({"query_id": ["q"], "query": ["light"]}),
        pd.DataFrame(
            {"query_id": ["q"], "product_id": ["p"], "grade": [1], "label": [1.0], "split": ["dev"]}
        ),
        has_ids=True,
        max_grade=1,
    )
    assert dataset.pairs("dev").iloc[0].to_dict() == {
        "query_id": "q",
        "product_id": "p",
        "query": "light",
        "document": "lamp",
        "label": 1.0,
        "grade": 1,
    }
