"""Read WANDS, Wayfair's annotation data set: from a local folder or, once, from its repository."""

import hashlib
import logging
import os
import tempfile
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path

import pandas as pd
from tqdm.auto import tqdm

from agr_trl.data.tables import (
    SourceTables,
    drop_repeats,
    read_table,
    reject,
    reject_blank,
    reject_unknown,
)
from agr_trl.errors import UserError

logger = logging.getLogger(__name__)

GRADES = {"Irrelevant": 0, "Partial": 1, "Exact": 2}

COMMIT = "3b74dcf4ba29ab8ff3e6a50b5b09fc627cb882b5"
BASE_URL = f"https://raw.githubusercontent.com/wayfair/WANDS/{COMMIT}/dataset"
# What git calls the content of each file at that commit: sha1 of "blob SIZE\0" and the bytes.
BLOB_IDS = {
    "query.csv": "acb3c1f4cf1b775f494225afec79ec2163fc3e03",
    "product.csv": "a415f7295dc0d90b3163ef606da611a4e9ddeca8",
    "label.csv": "2c09a0d7b1f77f6040deb5873b5a90b8ef1e3ae9",
}


def read_wands(folder: Path) -> SourceTables:
    """Read query.csv, product.csv and label.csv (tab-separated) of a folder or its dataset/.

    Grades are Irrelevant 0, Partial 1, Exact 2. Descriptions and classes may be missing. Raises
    `UserError` for anything that is missing or malformed, a repeated id, an unknown label, and a
    judgement of an unknown query or product.
    Format: Chen et al. 2022, WANDS, https://github.com/wayfair/WANDS.
    """
    if not (folder / "product.csv").is_file() and (folder / "dataset").is_dir():
        folder = folder / "dataset"
    queries = _read_items(folder / "query.csv", {"query_id": "query_id", "query": "query"})
    products = _read_items(
        folder / "product.csv",
        {
            "product_id": "product_id",
            "product_name": "title",
            "product_description": "description",
            "product_class": "product_class",
        },
    )
    return SourceTables(
        products, queries, _read_labels(folder / "label.csv", products, queries), max_grade=2
    )


def download_wands(
    folder: Path, base_url: str = BASE_URL, blob_ids: Mapping[str, str] = BLOB_IDS
) -> Path:
    """Fetch the files that the folder still lacks, and return the folder.

    A file appears there only whole and with the expected git blob id. Raises `UserError` where
    there is no network or the content is another.
    """
    missing = [name for name in blob_ids if not (folder / name).is_file()]
    if missing:
        folder.mkdir(parents=True, exist_ok=True)
        logger.info("downloading WANDS (%s) into %s", ", ".join(missing), folder)
    for name in missing:
        _download(f"{base_url}/{name}", folder / name, blob_ids[name])
    return folder


def git_blob_id(path: Path) -> str:
    """Return the id that git gives to a file's content: sha1 of "blob SIZE\\0" and the bytes."""
    digest = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _download(url: str, target: Path, blob_id: str) -> None:
    remedy = "get the three files elsewhere and point --dataset_path at their folder"
    descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    partial = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file, urllib.request.urlopen(url, timeout=30) as reply:
            size = int(reply.headers.get("Content-Length") or 0) or None
            bar = {"unit": "B", "unit_scale": True, "desc": target.name, "disable": None}
            with tqdm(total=size, **bar) as progress:
                while block := reply.read(1 << 16):
                    file.write(block)
                    progress.update(len(block))
        found = git_blob_id(partial)
        if found != blob_id:
            raise UserError(
                f"{url} has git blob id {found}, not {blob_id}: a broken or another file; {remedy}"
            )
        # mkstemp makes a private file; the cache may be shared.
        partial.chmod(0o644)
        partial.replace(target)
    except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
        raise UserError(f"cannot download {url} ({error}); {remedy}") from None
    finally:
        partial.unlink(missing_ok=True)


def _read_items(path: Path, names: dict[str, str]) -> pd.DataFrame:
    """Read a table whose first two columns, the id and the text, must be there and filled."""
    required, optional = list(names)[:2], list(names)[2:]
    rows = read_table(path, "\t", required, optional)
    if rows.empty:
        raise UserError(f"{path} holds no row below its header")
    reject_blank(path, rows, *required)
    id_column = required[0]
    repeated = rows.duplicated(id_column)
    reject(path, rows, repeated, id_column, "an earlier line has the same id; make ids unique")
    return rows.rename(columns=names)


def _read_labels(path: Path, products: pd.DataFrame, queries: pd.DataFrame) -> pd.DataFrame:
    rows = read_table(path, "\t", required=["query_id", "product_id", "label"])
    if rows.empty:
        raise UserError(f"{path} holds no judgement")
    unknown = ~rows["label"].isin(list(GRADES))
    reject(path, rows, unknown, "label", f"a label is one of {', '.join(GRADES)}")
    remedy = "there is no such query in query.csv"
    reject_unknown(path, rows, "query_id", queries["query_id"], remedy)
    remedy = "there is no such product in product.csv"
    reject_unknown(path, rows, "product_id", products["product_id"], remedy)
    rows = drop_repeats(path, rows, ["query_id", "product_id"], "label")
    return rows[["query_id", "product_id"]].assign(grade=rows["label"].map(GRADES).astype(int))
