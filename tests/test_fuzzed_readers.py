"""Readers of what others wrote: any file is a data set or one `UserError`, soon, in bounds."""

import json
import tempfile
import time
import tracemalloc
from pathlib import Path

import pyarrow
import pytest
from broken_files import PIECES, TARGETS, WAYS, broken, to_parquet
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from agr_trl.data.esci import plain_text

CHANGES = st.lists(
    st.tuples(
        st.sampled_from(WAYS),
        st.floats(0, 1),
        st.floats(0, 1),
        st.one_of(st.sampled_from(PIECES), st.binary(max_size=16)),
    ),
    min_size=1,
    max_size=5,
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.just(1.0),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=4,
)
# Columns of three rows, of every kind that Parquet has.
COLUMNS = [
    pyarrow.array(["red chair", None, ""]),
    pyarrow.array(["red chair", "lamp", "bed"], pyarrow.large_string()),
    pyarrow.array(["red chair", "lamp", "lamp"]).dictionary_encode(),
    pyarrow.array([b"\xff", b"a", None], pyarrow.binary()),
    pyarrow.array([1, 0, None], pyarrow.int8()),
    pyarrow.array([2**64 - 1, 0, 1], pyarrow.uint64()),
    pyarrow.array([float("nan"), float("inf"), 0.5]),
    pyarrow.array([True, False, None]),
    pyarrow.array([1, 2, None], pyarrow.timestamp("ns")),
    pyarrow.array([10**30, None, 0], pyarrow.decimal128(38)),
    pyarrow.array([["a"], [], None]),
    pyarrow.array([{"a": 1}, None, {}]),
    pyarrow.nulls(3),
]
# The same examples at each run; a deadline for each, in milliseconds, is what no hang means.
FAST = settings(
    derandomize=True, database=None, deadline=5_000, max_examples=25,
    suppress_health_check=list(HealthCheck),
)  # fmt: skip
LONG = settings(FAST, max_examples=400)
FEW_OR_MANY = [pytest.param(FAST, id="few"), pytest.param(LONG, id="many", marks=pytest.mark.slow)]


def look(target: str, files: dict[str, bytes]) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        return TARGETS[target].check(TARGETS[target].files | files, Path(folder))


@pytest.mark.parametrize("target", TARGETS)
def test_whole_files_are_read(target):
    assert look(target, {})


@pytest.mark.parametrize("number", FEW_OR_MANY)
@pytest.mark.parametrize("target", TARGETS)
def test_broken_files_are_read_or_refused(target, number):
    @number
    @given(CHANGES)
    def check(changes):
        files = dict(TARGETS[target].files)
        names = sorted(files)
        for way, place, size, piece in changes:
            name = names[int(place * 997) % len(names)]
            files[name] = broken(files[name], way, place, size, piece)
        look(target, files)

    check()


@pytest.mark.parametrize("number", FEW_OR_MANY)
@pytest.mark.parametrize(
    ("target", "file"),
    [("jsonl", "pairs.jsonl"), ("beir", "corpus.jsonl"), ("beir", "queries.jsonl")],
)
def test_json_of_any_values_is_read_or_refused(target, file, number):
    rows = [json.loads(line) for line in TARGETS[target].files[file].splitlines()]

    @number
    @given(st.lists(st.tuples(st.integers(0, 2), st.sampled_from([*rows[0]]), VALUES), min_size=1))
    def check(changes):
        changed = [dict(row) for row in rows]
        for row, field, value in changes:
            changed[row][field] = value
        look(target, {file: "\n".join(map(json.dumps, changed)).encode()})

    check()


@pytest.mark.parametrize("number", FEW_OR_MANY)
@pytest.mark.parametrize("target", ["parquet", "queries", "esci"])
def test_parquet_of_any_columns_is_read_or_refused(target, number):
    tables = {name: read_table(content) for name, content in TARGETS[target].files.items()}
    places = [(name, column) for name, table in tables.items() for column in table.column_names]

    @number
    @given(
        st.lists(st.tuples(st.sampled_from(places), st.sampled_from(COLUMNS)), max_size=2),
        st.none() | st.sampled_from(places),
    )
    def check(changes, twice):
        changed = {name: table.slice(0, len(COLUMNS[0])) for name, table in tables.items()}
        for (name, column), values in changes:
            values = values.slice(0, len(changed[name]))
            place = changed[name].column_names.index(column)
            changed[name] = changed[name].set_column(place, column, values)
        if twice is not None:
            name, column = twice
            changed[name] = changed[name].append_column(column, changed[name][column])
        look(target, {name: to_parquet(table) for name, table in changed.items()})

    check()


def read_table(content: bytes) -> pyarrow.Table:
    return parquet.read_table(pyarrow.BufferReader(content))


# --- What fuzzing found ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "files"),
    [
        ("jsonl", {"pairs.jsonl": b'{"a":' * 5_000}),  # nested deeper than Python's stack
        ("jsonl", {"pairs.jsonl": b'{"query": ' + b"9" * 5_000 + b"}"}),  # too long for int()
        ("jsonl", {"pairs.jsonl": b'{"query": "\\ud800", "document": "a", "label": 1}'}),
        ("beir", {"queries.jsonl": b'{"_id": {}, "text": "a"}'}),
        ("csv", {"pairs.csv": b"9" * 100_000}),  # an error that repeats its header
        ("config", {"run.yaml": b"[" * 5_000}),
        ("config", {"run.yaml": b"seed: 2001-13-45"}),
        ("config", {"run.yaml": b"seed: !!timestamp x"}),
        ("config", {"run.yaml": b"seed: 0x" + b"f" * 9_000}),
        (
            "config",  # 9 to the power of 9 numbers
            {
                "run.yaml": b"a0: &a0 [1]\n"
                + b"".join(
                    b"a%d: &a%d [%s]\n" % (n, n, b", ".join([b"*a%d" % (n - 1)] * 9))
                    for n in range(1, 10)
                )
            },
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_fuzzing_found_is_refused(target, files):
    assert not look(target, files)


def test_a_parquet_file_that_claims_too_much_is_refused():
    rows = 1_000_000
    table = pyarrow.table(
        {name: pyarrow.array([text] * rows).dictionary_encode()
         for name, text in (("query", "a"), ("document", "b"), ("label", "1"))}
    )  # fmt: skip
    content = to_parquet(table)
    assert len(content) < 10_000
    assert not look("parquet", {"pairs.parquet": content})


def test_a_parquet_file_may_say_nonsense_to_pandas():
    table = read_table(TARGETS["queries"].files["queries.parquet"])
    for notes in (b"{", b'{"columns": 1}', b'{"index_columns": ["x"], "columns": []}'):
        noted = table.replace_schema_metadata({b"pandas": notes})
        assert look("queries", {"queries.parquet": to_parquet(noted)})


@pytest.mark.parametrize(
    ("target", "file", "row"),
    [
        ("csv", "pairs.csv", b"a lamp %d,a document %d,1\n"),
        ("tsv", "pairs.tsv", b"a lamp %d\ta document %d\t1\n"),
        ("jsonl", "pairs.jsonl", b'{"query": "lamp %d", "document": "document %d", "label": 1}\n'),
        ("beir", "corpus.jsonl", b'{"_id": "q%d", "title": "lamp %d"}\n'),
    ],
)
def test_memory_is_bounded_by_the_input(target, file, row):
    content = TARGETS[target].files[file] + b"".join(row % (n, n) for n in range(1_000))
    tracemalloc.start()
    assert look(target, {file: content})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 80 * len(content)


def test_one_long_text_takes_neither_long_nor_much():
    """What is quadratic in a text would take minutes, or gigabytes."""
    for piece in (b"x" * 200_000, b"<!--" * 50_000):
        tracemalloc.start()
        begin = time.monotonic()
        line = b'{"query": "%s", "document": "%s", "label": 1}\n' % (piece, piece)
        look("jsonl", {"pairs.jsonl": TARGETS["jsonl"].files["pairs.jsonl"] + line})
        plain_text(piece.decode())
        assert tracemalloc.get_traced_memory()[1] < 80 * len(line)
        assert time.monotonic() - begin < 10
        tracemalloc.stop()
