"""Broken files for every reader: whole files, ways to break them, and who reads them.

A reader gives a data set that can be described, or one `UserError`. test_fuzzed_readers.py asks
that with hypothesis, scripts/fuzz_readers.py with a fuzzer that is guided by coverage.
"""

import io
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow
from pyarrow import parquet

from agr_trl.adversarial import SECTIONS
from agr_trl.config import parse_recipe
from agr_trl.data import load_relevance_dataset
from agr_trl.data.esci import EXAMPLES, PRODUCTS
from agr_trl.data.validation import describe_dataset, format_description
from agr_trl.errors import UserError
from agr_trl.query_files import read_queries
from agr_trl.report import sample_rows

Files = dict[str, bytes]


@dataclass(frozen=True)
class Target:
    """A reader: whole files that it reads, and how it is asked to."""

    files: Files
    read: Callable[[Path], object]

    def check(self, files: Files, folder: Path) -> bool:
        """Read files; whether they were taken. Any error but `UserError` is a finding."""
        for name, content in files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        try:
            self.read(folder)
        except UserError as error:
            assert len(str(error)) < 2_000, "an error shall be short"
            return False
        return True


# --- Whole files ----------------------------------------------------------------------------------

PAIRS = pd.DataFrame(
    [(f"{colour} {thing}", f"{colour} oak {thing}, 120 cm", label)
     for colour in ("red", "blue", "green") for thing in ("chair", "lamp") for label in (1.0,)]
    + [("red chair", "blue lamp, 30 cm", 0.0), ("blue lamp", "red chair", 0.25)],
    columns=["query", "document", "label"],
)  # fmt: skip
QUERIES = pd.DataFrame(
    {
        "product_id": ["p0", "p1"],
        "document": ["red chair", "blue lamp"],
        "title": ["red chair", "blue lamp"],
        "product_index": [0, 1],
        "query": ["chair", "lamp"],
        "round": [1, 1],
        "probability": [0.5, 0.25],
        "relevance": [0.75, 0.5],
        "reason": ["", "duplicate"],
        "accepted": [True, False],
    }
)
ESCI_EXAMPLES = pd.DataFrame(
    [(n, f"lamp {n // 2}", n // 2, f"B{n % 3}", "us", "ESCI"[n % 4], 1, 1, split)
     for n, split in enumerate(["train"] * 6 + ["test"] * 4)],
    columns=["example_id", "query", "query_id", "product_id", "product_locale", "esci_label",
             "small_version", "large_version", "split"],
)  # fmt: skip
ESCI_PRODUCTS = pd.DataFrame(
    [(f"B{n}", f"Desk lamp {n}", "<p>Solid&nbsp;oak.<br>", "sturdy\nheavy", "us")
     for n in range(3)],
    columns=["product_id", "product_title", "product_description", "product_bullet_point",
             "product_locale"],
)  # fmt: skip


def _json_lines(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def to_parquet(table: pd.DataFrame | pyarrow.Table) -> bytes:
    """Return a table as the bytes of a Parquet file."""
    file = io.BytesIO()
    if isinstance(table, pd.DataFrame):
        table.to_parquet(file, index=False)
    else:
        parquet.write_table(table, file)
    return file.getvalue()


BEIR = {
    "corpus.jsonl": _json_lines(
        [{"_id": f"p{n}", "title": f"red lamp {n}", "text": "oak"} for n in range(4)]
    ),
    "queries.jsonl": _json_lines([{"_id": f"q{n}", "text": f"lamp {n}"} for n in range(3)]),
    "qrels/train.tsv": b"query-id\tcorpus-id\tscore\nq0\tp0\t2\nq0\tp1\t0\nq1\tp2\t1\n",
    "qrels/dev.tsv": b"query-id\tcorpus-id\tscore\nq2\tp3\t1\nq2\tp0\t0\n",
}
WANDS = {
    "query.csv": b"query_id\tquery\tquery_class\n"
    + b"".join(b"%d\tsofa %d\tSofas\n" % (n, n) for n in range(5)),
    "product.csv": b"product_id\tproduct_name\tproduct_class\tproduct_description\n"
    + b'0\t48" red sofa\tSofas\tsoft\n1\toak bed\tBeds\t\n',
    "label.csv": b"id\tquery_id\tproduct_id\tlabel\n"
    + b"".join(
        b"%d\t%d\t%d\t%s\n" % (n, n // 2, n % 2, [b"Exact", b"Partial", b"Irrelevant"][n % 3])
        for n in range(10)
    ),
}
CONFIG = b"""# a run
dataset_format: beir
dataset_path: shop
output_dir: run
rounds: 2
retriever:
  learning_rate: 1e-3
  max_steps: 2
  lr_scheduler_kwargs: {power: 2.0}
reward:
  relevance_model: lsa
  min_relevance: 0.5
generator:
  num_generations: 4
  reward_weights: [1.0, 1.0, 0.0]
"""


# --- Readers --------------------------------------------------------------------------------------


def _dataset(dataset_format: str, name: str = "") -> Callable[[Path], object]:
    def read(folder: Path) -> object:
        dataset = load_relevance_dataset(dataset_format, folder / name)
        dataset.fingerprint()
        return format_description(describe_dataset(dataset))

    return read


def _read_config(folder: Path) -> object:
    recipe = parse_recipe(SECTIONS, "train_adversarial.py", ["--config", str(folder / "run.yaml")])
    return recipe.resolved()


def _read_queries(folder: Path) -> object:
    return sample_rows(read_queries(folder / "queries.parquet"), {})


TARGETS = {
    "csv": Target(
        {"pairs.csv": PAIRS.to_csv(index=False).encode()}, _dataset("pairs", "pairs.csv")
    ),
    "tsv": Target(
        {"pairs.tsv": PAIRS.to_csv(index=False, sep="\t").encode()}, _dataset("pairs", "pairs.tsv")
    ),
    "jsonl": Target(
        {"pairs.jsonl": _json_lines(PAIRS.to_dict("records"))}, _dataset("pairs", "pairs.jsonl")
    ),
    "parquet": Target({"pairs.parquet": to_parquet(PAIRS)}, _dataset("pairs", "pairs.parquet")),
    "beir": Target(BEIR, _dataset("beir")),
    "wands": Target(WANDS, _dataset("wands")),
    "esci": Target(
        {EXAMPLES: to_parquet(ESCI_EXAMPLES), PRODUCTS: to_parquet(ESCI_PRODUCTS)},
        _dataset("esci"),
    ),
    "config": Target({"run.yaml": CONFIG}, _read_config),
    "queries": Target({"queries.parquet": to_parquet(QUERIES)}, _read_queries),
}

# --- Ways to break a file -------------------------------------------------------------------------

PIECES = [
    *(b"\x00", b"\xff", b"\xef\xbb\xbf", b"\xff\xfe", b"\xed\xa0\x80", b"\xc3", b"\r", b"\r\n"),
    *(
        b"\n",
        b"\n\n",
        b"\t",
        b",",
        b'"',
        b'""',
        b"'",
        b"\\",
        b"\\ud800",
        b"\\u0000",
        b"{",
        b"}",
        b"[",
    ),
    *(
        b"]",
        b":",
        b": ",
        b"- ",
        b"#",
        b"&a ",
        b"*a",
        b"<<: ",
        b"!!int ",
        b"!!python/name:os.system ",
    ),
    *(
        b"!!timestamp x",
        b"!!binary x",
        b"2001-13-45",
        b"0x" + b"f" * 9_000,
        b"? ",
        b"|\n",
        b"%",
        b"=",
    ),
    *(b"null", b"true", b"NaN", b"-Infinity", b"1e999", b"-1", b"0.5", b"9" * 5_000, b"[]", b"{}"),
    *(
        b"[" * 5_000,
        b'{"a":' * 5_000,
        b"<!--" * 5_000,
        b"<a " * 5_000,
        b"&" * 5_000,
        b"x" * 200_000,
    ),
    *(b'"_id": ', b'"label": ', b"query", b"document", b"label", b"product_id", b"Exact", b"p0"),
    *("\u202e".encode(), "\u2028".encode(), "İ".encode(), "ﬃ".encode(), "\U0001f9d1".encode()),
]
WAYS = ("cut", "drop", "repeat", "put", "flip", "join", "encode")


def broken(content: bytes, way: str, place: float, size: float, piece: bytes) -> bytes:
    """Return a file's content broken in one way; `place` and `size` are shares of its length."""
    at = math.floor(place * len(content))
    to = min(len(content), at + 1 + math.floor(size * 64))
    if way == "cut":
        return content[:at]
    if way == "drop":
        return content[:at] + content[to:]
    if way == "repeat":
        return content[:to] + content[at:to] * (1 + math.floor(size * 4)) + content[to:]
    if way == "put":
        return content[:at] + piece + content[at:]
    if way == "flip":
        return (
            content[:at]
            + bytes(b ^ (1 << math.floor(size * 7)) for b in content[at : at + 1])
            + (content[at + 1 :])
        )
    if way == "join":  # the bytes between, in place of a line's
        return content[:at] + piece + content[to:]
    text = content.decode("utf-8", errors="replace")
    return text.encode(
        ["utf-16", "latin-1", "utf-8-sig", "utf-32"][math.floor(size * 3.99)], "replace"
    )
