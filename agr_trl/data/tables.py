"""Read tables so that every complaint names file, line, column and remedy."""

import csv
import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import pyarrow
from pyarrow import csv as arrow_csv
from pyarrow.parquet import ParquetFile

from agr_trl.errors import UserError

logger = logging.getLogger(__name__)

DELIMITER_NAMES = {"\t": "tab", ",": "comma"}
BATCH_ROWS = 1 << 14
MAX_FIELD = 1 << 24  # characters; csv alone stops at 131,072, which a description may have
MAX_GRADE = 10  # its gain in nDCG is 2^grade - 1, so of finer ratings only the best would count
# What a Parquet file may hold for each of its bytes: more can only be made to fill the memory.
MAX_ROWS_PER_BYTE = 8
MAX_EXPANSION = 1_000
PLAIN_TYPES = (
    *(pyarrow.types.is_string, pyarrow.types.is_large_string, pyarrow.types.is_integer),
    *(pyarrow.types.is_floating, pyarrow.types.is_boolean, pyarrow.types.is_null),
)


class SourceTables(NamedTuple):
    """What a reader found: the three tables of a relevance data set before labels and splits.

    `products` has product_id, title and description, `queries` has query_id and query, and
    `judgements` has query_id, product_id, grade, and where the source states them label and split.
    """

    products: pd.DataFrame
    queries: pd.DataFrame
    judgements: pd.DataFrame
    max_grade: int
    has_ids: bool = True


def read_table(
    path: Path, delimiter: str, required: Sequence[str], optional: Sequence[str] = ()
) -> pd.DataFrame:
    """Read a delimited file with a header as stripped strings, indexed by line number.

    Tab-separated files are taken line by line, so that a stray quote (48" desk) cannot swallow the
    lines after it; only if that fails may a quoted field span lines. Raises `UserError` for a
    missing file or column, the wrong delimiter, a wrong number of fields, and bytes that are not
    UTF-8.
    """
    require_file(path)
    wanted = (*required, *optional)
    try:
        if delimiter != "\t":
            return _parse(path, delimiter, required, wanted, csv.QUOTE_MINIMAL)
        try:
            return _parse(path, delimiter, required, wanted, csv.QUOTE_NONE)
        except UserError as line_error:
            try:
                return _parse(path, delimiter, required, wanted, csv.QUOTE_MINIMAL)
            except UserError:
                raise line_error from None
    except UnicodeDecodeError:
        raise _not_utf8(path) from None


def read_json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number, object) of a JSON Lines file; blank lines are skipped.

    Raises `UserError` for a missing file, a line that is not one JSON object, and bytes that are
    not UTF-8.
    """
    require_file(path)
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                try:
                    record = json.loads(line)
                    if "\\u" in line:  # perhaps half of a surrogate pair, which no file can hold
                        json.dumps(record, ensure_ascii=False).encode()
                except json.JSONDecodeError as error:
                    raise UserError(
                        f"{path}, line {number}: broken JSON ({error.msg}, column {error.colno}); "
                        "write one complete object a line"
                    ) from None
                except (ValueError, RecursionError) as error:
                    raise UserError(
                        f"{path}, line {number}: cannot be read ({str(error)[:100]}); write texts "
                        "and numbers alone"
                    ) from None
                if not isinstance(record, dict):
                    raise UserError(f"{path}, line {number}: not a JSON object; write {{...}}")
                yield number, record
    except UnicodeDecodeError:
        raise _not_utf8(path) from None


def parquet_batches(path: Path, columns: Sequence[str]) -> Iterator[pd.DataFrame]:
    """Yield the named columns of a Parquet file in pieces, at least one, perhaps empty.

    The index, "row", counts the rows of the file from 1. Memory holds one piece and what the caller
    keeps. Raises `UserError` for a missing file or column and for what is no Parquet file.
    """
    with open_parquet(path) as file:
        names = file.schema_arrow.names
        missing = [name for name in columns if name not in names]
        if missing:
            raise UserError(f"{path} has no column {', '.join(missing)}; it has {', '.join(names)}")
        for name in columns:
            kind = file.schema_arrow.field(name).type
            if not any(is_kind(_plain(kind)) for is_kind in PLAIN_TYPES):
                raise UserError(f"{path}: `{name}` is of type {kind}; write texts or numbers")
        first = 1
        if not file.metadata.num_rows:
            yield as_frame(file.read(list(columns)))
        for batch in file.iter_batches(BATCH_ROWS, columns=list(columns)):
            rows = pd.RangeIndex(first, first + len(batch), name="row")
            first += len(batch)
            yield as_frame(batch).set_axis(rows)


@contextmanager
def open_parquet(path: Path) -> Iterator[ParquetFile]:
    """Open a Parquet file; what is wrong with it, also while it is read, is a `UserError`.

    So are two columns of one name, and in `parquet_batches` one of neither texts nor numbers.
    """
    require_file(path)
    try:
        # Without pre-buffering a row group's pages are read as they are needed, not all at once.
        with ParquetFile(path, pre_buffer=False, buffer_size=1 << 20) as file:
            names = file.schema_arrow.names
            if len(set(names)) < len(names):
                raise UserError(f"{path} names a column twice: {', '.join(names)}")
            _check_size(path, file)
            yield file
    except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{path} is not a Parquet file ({reason}); write it again, or where git left a pointer "
            "in its place run `git lfs pull`"
        ) from None


def as_frame(rows: pyarrow.RecordBatch | pyarrow.Table) -> pd.DataFrame:
    """Return what was read as a frame; raises what `open_parquet` names for text that is not UTF-8.

    The notes that pandas leaves in a file, which may be broken like the rest, are not looked at.
    """
    rows.validate(full=True)
    plain = [pyarrow.field(field.name, _plain(field.type)) for field in rows.schema]
    return rows.cast(pyarrow.schema(plain)).to_pandas().rename_axis("row")


def _plain(kind: pyarrow.DataType) -> pyarrow.DataType:
    """Return the type of a column's values, which a table may hold once and point to."""
    return kind.value_type if pyarrow.types.is_dictionary(kind) else kind


def _check_size(path: Path, file: ParquetFile) -> None:
    """Raise `UserError` where a small file claims to hold more than could be written into it."""
    size, metadata = path.stat().st_size, file.metadata
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    if (
        metadata.num_rows > MAX_ROWS_PER_BYTE * size
        or sum(group.total_byte_size for group in groups) > MAX_EXPANSION * size
    ):
        raise UserError(
            f"{path} claims {metadata.num_rows:,} rows in {size:,} bytes; write it again"
        )


def require_file(path: Path) -> None:
    """Raise `UserError` unless the path is an existing file; say what lies beside it."""
    if path.is_file():
        return
    if path.parent.is_dir():
        beside = ", ".join(sorted(entry.name for entry in path.parent.iterdir())[:10]) or "nothing"
        raise UserError(f"{path} is missing; {path.parent} holds {beside}")
    raise UserError(f"{path} is missing, and so is its folder; check dataset_path")


def reject(path: Path, rows: pd.DataFrame, bad: pd.Series, column: str, remedy: str) -> None:
    """Raise `UserError` for the first row where `bad` is true; the index holds line numbers."""
    if bad.any():
        position = int(bad.to_numpy().argmax())
        value = rows[column].iloc[[position]].tolist()[0]  # a plain Python value, for its repr
        raise UserError(
            f"{path}, {rows.index.name} {rows.index[position]}: `{column}` is {value!r}; {remedy}"
        )


def reject_blank(path: Path, rows: pd.DataFrame, *columns: str) -> None:
    """Raise `UserError` for the first row with nothing in one of the columns."""
    for column in columns:
        reject(path, rows, rows[column] == "", column, "give it a text or remove the row")


def reject_unknown(
    path: Path, rows: pd.DataFrame, column: str, known: pd.Series, remedy: str
) -> None:
    """Raise `UserError` for the first row whose value is not among the known (unique) ones."""
    # Not `isin`: with pandas 3 it takes seconds for tens of thousands of known strings.
    unknown = pd.Index(known).get_indexer(pd.Index(rows[column])) < 0
    reject(path, rows, pd.Series(unknown, index=rows.index), column, remedy)


def drop_repeats(path: Path, rows: pd.DataFrame, keys: list[str], value: str) -> pd.DataFrame:
    """Keep a repeated judgement once; raise `UserError` where repetitions contradict each other."""
    repeated = rows.duplicated(keys)
    if not repeated.any():
        return rows
    first = rows.groupby(keys, sort=False)[value].transform("first")
    remedy = f"an earlier row has another {value} for the same {' and '.join(keys)}; keep one"
    reject(path, rows, rows[value] != first, value, remedy)
    logger.warning("%s: %d repeated judgements count once", path, repeated.sum())
    return rows[~repeated]


def _parse(
    path: Path, delimiter: str, required: Sequence[str], wanted: Sequence[str], quoting: int
) -> pd.DataFrame:
    rows = _records(path, delimiter, quoting)
    first_line, header = next(rows, (1, []))
    header = [_unquote(name).strip() for name in header]
    _check_header(path, header, required, delimiter)
    columns = [name for name in wanted if name in header]
    table = None
    if quoting == csv.QUOTE_NONE and first_line == 1:
        table = _whole_lines(path, delimiter, header, columns)
    if table is None:
        table = _as_table(path, delimiter, header, columns, rows)
    for name in columns:
        text = table[name]
        if quoting == csv.QUOTE_NONE and text.str.startswith('"').any():
            text = text.map(_unquote)
        table[name] = text.str.strip()
    return table


def _as_table(
    path: Path,
    delimiter: str,
    header: list[str],
    columns: list[str],
    rows: Iterator[tuple[int, list[str]]],
) -> pd.DataFrame:
    """Collect the columns of records that csv has read, each with the number of its line."""
    places = [header.index(name) for name in columns]
    lines, values = [], []
    for line, fields in rows:
        if len(fields) != len(header):
            raise UserError(
                f"{path}, line {line}: {len(fields)} fields where the header has {len(header)}; "
                f"separate them by one {DELIMITER_NAMES[delimiter]} each"
            )
        lines.append(line)
        values.append([fields[place] for place in places])
    return pd.DataFrame(values, columns=columns, index=pd.Index(lines, name="line"), dtype="str")


def _whole_lines(
    path: Path, delimiter: str, header: list[str], columns: list[str]
) -> pd.DataFrame | None:
    """Read a file of one record a line by Arrow, several times as fast as csv.

    None for whatever is not plain: a blank line, a line of too many or too few fields or of
    megabytes, bytes that are not UTF-8. csv then reads it, and says what is wrong in which line.
    """
    try:
        rows = arrow_csv.read_csv(
            path,
            arrow_csv.ReadOptions(column_names=header, skip_rows=1),
            arrow_csv.ParseOptions(delimiter=delimiter, quote_char=False, ignore_empty_lines=False),
            arrow_csv.ConvertOptions(
                column_types=dict.fromkeys(columns, pyarrow.string()), include_columns=columns
            ),
        )
    except pyarrow.ArrowInvalid:
        return None
    table = rows.to_pandas().astype("str")
    if (table == "").all(axis=1).any():  # so Arrow gives a blank line, or it is one of nothing
        return None
    return table.set_axis(pd.RangeIndex(2, 2 + len(rows), name="line"))


def _records(path: Path, delimiter: str, quoting: Any) -> Iterator[tuple[int, list[str]]]:
    """Yield (number of its first line, fields) of each record that is not blank."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        csv.field_size_limit(MAX_FIELD)
        reader = csv.reader(file, delimiter=delimiter, quoting=quoting, strict=True)
        line = 1
        try:
            for fields in reader:
                if fields:
                    yield line, fields
                line = reader.line_num + 1
        except csv.Error as error:
            raise UserError(
                f"{path}, line {line}: {error}; a field that holds quotes must be quoted as a "
                'whole, with each inner quote doubled ("48"" desk")'
            ) from None


def _unquote(field: str) -> str:
    """Undo CSV quoting of a whole field ("48"" desk" is 48" desk); leave stray quotes alone."""
    inner = field[1:-1]
    quoted = len(field) > 1 and field[0] == field[-1] == '"' and '"' not in inner.replace('""', "")
    return inner.replace('""', '"') if quoted else field


def _check_header(path: Path, header: list[str], required: Sequence[str], delimiter: str) -> None:
    if not header:
        raise UserError(f"{path} is empty; it needs a header line with {', '.join(required)}")
    other = "," if delimiter == "\t" else "\t"
    if len(header) == 1 and other in header[0]:
        raise UserError(
            f"{path} looks {DELIMITER_NAMES[other]}-separated where {DELIMITER_NAMES[delimiter]}s "
            f"are expected (header {header[0]!r}); write it {DELIMITER_NAMES[delimiter]}-separated"
        )
    missing = [name for name in required if name not in header]
    if missing:
        raise UserError(
            f"{path} has no column {', '.join(missing)}; its header has {', '.join(header)}"
        )
    if len(set(header)) < len(header):
        raise UserError(f"{path} names a column twice in its header: {', '.join(header)}")


def _not_utf8(path: Path) -> UserError:
    """Find the first line that is not UTF-8: the decoder itself reports no line."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                return UserError(
                    f"{path}, line {number}: byte 0x{line[error.start]:02x} is not UTF-8; "
                    "save the file as UTF-8"
                )
    return UserError(f"{path} is not UTF-8; save the file as UTF-8")
