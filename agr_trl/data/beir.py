"""Read a folder in BEIR's layout: corpus.jsonl, queries.jsonl, qrels/SPLIT.tsv."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from agr_trl.data.splits import SPLITS
from agr_trl.data.tables import (
    MAX_GRADE,
    SourceTables,
    drop_repeats,
    read_json_lines,
    read_table,
    reject,
    reject_blank,
    reject_unknown,
)
from agr_trl.errors import UserError

logger = logging.getLogger(__name__)

CORPUS_FIELDS = {"product_id": "_id", "title": "title", "description": "text"}


def read_beir(folder: Path) -> SourceTables:
    """Read corpus, queries and every split that lies in qrels/.

    Grades are whole numbers from 0 to `MAX_GRADE`. Products without any text, which published sets
    have, are left out with their judgements. Raises `UserError` for anything that is missing or
    malformed, a repeated id, and a judgement of an unknown query or product.
    Layout: Thakur et al. 2021, BEIR, https://github.com/beir-cellar/beir.
    """
    corpus = folder / "corpus.jsonl"
    products = _read_texts(corpus, CORPUS_FIELDS)
    blank = (products["title"] == "") & (products["description"] == "")
    if blank.all():
        raise UserError(f"{corpus}: no product has a title or a text; give them one")
    queries = _read_texts(folder / "queries.jsonl", {"query_id": "_id", "query": "text"})
    reject_blank(folder / "queries.jsonl", queries, "query")
    paths = [folder / "qrels" / f"{split}.tsv" for split in SPLITS]
    if not any(path.is_file() for path in paths):
        raise UserError(f"{folder / 'qrels'} holds none of {', '.join(p.name for p in paths)}")
    judgements = pd.concat(
        [
            _read_qrels(path, products["product_id"], queries["query_id"]).assign(split=path.stem)
            for path in paths
            if path.is_file()
        ],
        ignore_index=True,
    )
    of_blank = judgements["product_id"].isin(products.loc[blank, "product_id"])
    if blank.any():
        logger.warning(
            "%s: %d products without any text are left out, with %d judgements",
            corpus,
            blank.sum(),
            of_blank.sum(),
        )
    judgements = judgements[~of_blank].reset_index(drop=True)
    if judgements.empty:
        raise UserError(f"{corpus}: no judged product has a title or a text; give them one")
    max_grade = int(judgements["grade"].max())
    return SourceTables(products[~blank], queries, judgements, max_grade=max_grade)


def _read_texts(path: Path, fields: dict[str, str]) -> pd.DataFrame:
    """Read the named JSON fields as stripped strings; only the first, the id, must be there."""
    id_column = next(iter(fields))
    lines, rows = [], []
    for line, values in read_text_rows(path, fields):
        lines.append(line)
        rows.append(values)
    if not rows:
        raise UserError(f"{path} is empty; it needs one JSON object a line")
    table = pd.DataFrame(
        rows, columns=list(fields), index=pd.Index(lines, name="line"), dtype="str"
    )
    reject_blank(path, table, id_column)
    repeated = table.duplicated(id_column)
    reject(path, table, repeated, id_column, "an earlier line has the same id; make ids unique")
    return table


def read_text_rows(path: Path, fields: dict[str, str]) -> Iterator[tuple[int, list[str]]]:
    """Yield (line number, stripped texts of the named JSON fields); the first must be there."""
    id_field = next(iter(fields.values()))
    for line, record in read_json_lines(path):
        if id_field not in record:
            raise UserError(f"{path}, line {line}: no field `{id_field}`; give every line one")
        values = [
            record[field] if record.get(field) is not None else "" for field in fields.values()
        ]
        if isinstance(values[0], int | float):
            values[0] = str(values[0])
        for field, value in zip(fields.values(), values, strict=True):
            if not isinstance(value, str):
                raise UserError(f"{path}, line {line}: `{field}` is {value!r}; it must be a text")
        yield line, [value.strip() for value in values]


def _read_qrels(path: Path, product_ids: pd.Series, query_ids: pd.Series) -> pd.DataFrame:
    names = {"query-id": "query_id", "corpus-id": "product_id", "score": "score"}
    rows = read_table(path, "\t", required=list(names)).rename(columns=names)
    if rows.empty:
        raise UserError(f"{path} holds no judgement; add some or remove the file")
    not_a_grade = ~rows["score"].isin([str(grade) for grade in range(MAX_GRADE + 1)])
    remedy = f"a grade is a whole number from 0 to {MAX_GRADE}; map finer ratings to a few grades"
    reject(path, rows, not_a_grade, "score", remedy)
    remedy = "there is no such query in queries.jsonl"
    reject_unknown(path, rows, "query_id", query_ids, remedy)
    remedy = "there is no such product in corpus.jsonl"
    reject_unknown(path, rows, "product_id", product_ids, remedy)
    rows["grade"] = rows.pop("score").astype(int)
    return drop_repeats(path, rows, ["query_id", "product_id"], "grade")
