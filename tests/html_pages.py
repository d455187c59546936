"""A written page read back as HTML, and texts that would harm one that does not escape them."""

from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

HOSTILE = "<script>alert(1)</script> lamp"
BIDI = "oak \u202etable\u202c\x07 desk"
VOID = {"meta", "link", "img", "br", "hr", "input", "line", "circle", "path"}


class Page(HTMLParser):
    """What a test asks of a page: text, tags, ids, attributes, and whether tags are balanced."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str | None]] = []
        self.open: list[str] = []
        self.rows: list[list[str]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" in self.open:
            return
        self.texts.append(data)
        if self.rows and self.rows[-1] and ({"td", "th"} & set(self.open)):
            self.rows[-1][-1] += data

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def row(self, start: str) -> list[str]:
        """The cells of the first table row whose first cell starts so."""
        rows = [[" ".join(cell.split()) for cell in row] for row in self.rows if row]
        return next(row for row in rows if row[0].startswith(start))


def page_of(write: Callable[[Path], Path], folder: Path) -> Page:
    """Write a folder's page, read it, and check that every tag is closed."""
    page = Page(write(folder).read_text(encoding="utf-8"))
    assert page.open == []
    return page
