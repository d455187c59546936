import pandas as pd
import pytest

from agr_trl.data import tables
from agr_trl.data.tables import read_table
from agr_trl.errors import UserError

COLUMNS = ("id", "text")

PLAIN = {
    "lines": "id\ttext\n1\tred chair\n2\tdesk\n",
    "no line end at the end": "id\ttext\n1\tred chair\n2\tdesk",
    "Windows line ends": "id\ttext\r\n1\tred chair\r\n2\tdesk\r\n",
    "old Mac line ends": "id\ttext\r1\tred chair\r2\tdesk\r",
    "byte order mark": "\ufeffid\ttext\n1\tred chair\n2\tdesk\n",
    "stray quotes": 'id\ttext\n1\t48" desk\n2\t"a "wide" chair\n',
    "quoted fields": 'id\ttext\n1\t"48"" desk"\n2\t""\n',
    "what looks like numbers and nothing": "id\ttext\n007\t\n1.0\tNA\nnull\t-\n",
    "spaces and letters": "id\ttext\n 1 \t\u00a0sofa\u2003\n2\tcanap\u00e9 \u5e8a \U0001f6cb\n",
    "further columns": "id\tother\ttext\n1\tx\tred chair\n2\ty\tdesk\n",
    "header alone": "id\ttext\n",
}  # fmt: skip


@pytest.mark.parametrize("content", PLAIN.values(), ids=PLAIN)
def test_plain_files_read_by_arrow_are_what_csv_reads(content, tmp_path, monkeypatch):
    path = tmp_path / "items.csv"
    path.write_bytes(content.encode())
    read = []
    real = tables._whole_lines
    monkeypatch.setattr(tables, "_whole_lines", lambda *a: read.append(real(*a)) or read[-1])
    fast = read_table(path, "\t", COLUMNS)
    assert read[0] is not None
    monkeypatch.setattr(tables, "_whole_lines", lambda *_: None)
    pd.testing.assert_frame_equal(fast, read_table(path, "\t", COLUMNS), check_index_type=False)
    assert fast.index.tolist() == list(range(2, 2 + len(fast)))


NOT_PLAIN = {
    "a blank line": ("id\ttext\n1\tchair\n\n2\tdesk\n", [2, 4]),
    "blank lines before the header": ("\n\nid\ttext\n1\tchair\n", [4]),
    "a blank line at the end": ("id\ttext\n1\tchair\n\n", [2]),
    "a line of megabytes": ("id\ttext\n1\tchair\n2\t" + "wide " * 500_000 + "\n", [2, 3]),
}


@pytest.mark.parametrize(("content", "lines"), NOT_PLAIN.values(), ids=NOT_PLAIN)
def test_other_files_keep_their_line_numbers(content, lines, tmp_path):
    path = tmp_path / "items.csv"
    path.write_text(content)
    assert read_table(path, "\t", COLUMNS).index.tolist() == lines


def test_a_line_that_is_wrong_is_named_behind_many_that_are_not(tmp_path):
    path = tmp_path / "items.csv"
    path.write_text("id\ttext\n" + "1\tchair\n" * 100_000 + "2\tdesk\toak\n")
    with pytest.raises(UserError, match="line 100002: 3 fields where the header has 2"):
        read_table(path, "\t", COLUMNS)
    path.write_bytes(b"id\ttext\n" + b"1\tchair\n" * 100_000 + b"2\t\xff\n")
    with pytest.raises(UserError, match="line 100002: byte 0xff is not UTF-8"):
        read_table(path, "\t", COLUMNS)
