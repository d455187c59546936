"""Read judged pairs: query, document, label in CSV, TSV, JSON Lines or Parquet."""

from pathlib import Path

import pandas as pd

from agr_trl.data.splits import SPLITS
from agr_trl.data.tables import (
    SourceTables,
    drop_repeats,
    parquet_batches,
    read_json_lines,
    read_table,
    reject,
    reject_blank,
)
from agr_trl.errors import UserError

COLUMNS = ["query", "document", "label"]
SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")


def read_pairs(path: Path) -> SourceTables:
    """Read one file of pairs, or a folder's train, dev and test files.

    Labels are numbers from 0 to 1; the grade is 1 from .5 on. The catalogue is every distinct
    document of all files and ids are made by order of appearance. Only a folder states splits.
    Raises `UserError` for anything that is missing or malformed and for a pair with two labels.
    """
    if path.is_file():
        rows = _read_file(path)
    else:
        rows = pd.concat(
            [_read_file(file).assign(split=file.stem) for file in split_files(path)],
            ignore_index=True,
        )
    product_codes, documents = pd.factorize(rows["document"])
    query_codes, query_texts = pd.factorize(rows["query"])
    products = {"product_id": _ids("d", len(documents)), "title": documents, "description": ""}
    queries = {"query_id": _ids("q", len(query_texts)), "query": query_texts}
    judgements = rows.drop(columns=["query", "document"]).assign(
        query_id=queries["query_id"][query_codes],
        product_id=products["product_id"][product_codes],
        grade=(rows["label"] >= 0.5).astype(int),
    )
    return SourceTables(
        pd.DataFrame(products),
        pd.DataFrame(queries),
        judgements,
        max_grade=1,
        has_ids=False,
    )


def _ids(prefix: str, count: int) -> pd.Index:
    return pd.Index([f"{prefix}{number}" for number in range(count)], dtype="str")


def split_files(folder: Path) -> list[Path]:
    """Return a folder's train, dev and test files, in this order; `UserError` for none."""
    files = []
    for split in SPLITS:
        found = [folder / f"{split}{suffix}" for suffix in SUFFIXES]
        found = [path for path in found if path.is_file()]
        if len(found) > 1:
            names = " and ".join(path.name for path in found)
            raise UserError(f"{folder} holds {names}; keep one file a split")
        files += found
    if not files:
        names = ", ".join(f"{split}{SUFFIXES[0]}" for split in SPLITS)
        raise UserError(
            f"{folder} holds none of {names} (nor with {', '.join(SUFFIXES[1:])}); "
            "name the files after their split, or point dataset_path at one file"
        )
    return files


def _read_file(path: Path) -> pd.DataFrame:
    """Read one file into query, document (stripped texts) and label (float), checked."""
    readers = {".csv": _read_csv, ".tsv": _read_tsv, ".jsonl": _read_jsonl}
    readers[".parquet"] = _read_parquet
    if path.suffix not in readers:
        raise UserError(f"{path} is none of {', '.join(SUFFIXES)}; convert it to one of them")
    rows = readers[path.suffix](path)
    if rows.empty:
        raise UserError(f"{path} holds no pair; add some or remove the file")
    reject_blank(path, rows, "query", "document")
    label = pd.to_numeric(rows["label"], errors="coerce")
    reject(path, rows, ~label.between(0, 1), "label", "a label is a number from 0 to 1")
    return drop_repeats(path, rows.assign(label=label.astype(float)), COLUMNS[:2], "label")


def _read_csv(path: Path) -> pd.DataFrame:
    return read_table(path, ",", COLUMNS)


def _read_tsv(path: Path) -> pd.DataFrame:
    return read_table(path, "\t", COLUMNS)


def _read_jsonl(path: Path) -> pd.DataFrame:
    lines, rows = [], []
    for line, record in read_json_lines(path):
        missing = [name for name in COLUMNS if name not in record]
        if missing:
            raise UserError(f"{path}, line {line}: no field {', '.join(missing)}; add it")
        lines.append(line)
        rows.append([record[name] for name in COLUMNS])
    table = pd.DataFrame(rows, columns=COLUMNS, index=pd.Index(lines, name="line"), dtype=object)
    return _check_texts(path, table)


def _read_parquet(path: Path) -> pd.DataFrame:
    table = pd.concat(parquet_batches(path, COLUMNS))
    return _check_texts(path, table[COLUMNS].astype(object))


def _check_texts(path: Path, table: pd.DataFrame) -> pd.DataFrame:
    """Strip query and document; raise `UserError` where one is no text or the label no value."""
    for name in COLUMNS[:2]:
        is_text = table[name].map(lambda value: isinstance(value, str)).astype(bool)
        reject(path, table, ~is_text, name, "it must be a text")
        table[name] = table[name].astype("str").str.strip()
    is_nested = table["label"].map(lambda value: isinstance(value, list | dict)).astype(bool)
    reject(path, table, is_nested, "label", "a label is a number from 0 to 1")
    return table
