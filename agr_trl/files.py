"""Files that are absent, old or whole, and never half."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO
from uuid import uuid4

import pandas as pd

from agr_trl.errors import UserError


def write_text(path: Path, text: str) -> None:
    """Write a file so that it is either absent (or old) or whole."""
    with _replacing(path) as file:
        file.write(text.encode())


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically, with stable formatting; NaN is refused since JSON has none."""
    write_text(path, json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def write_parquet(path: Path, table: pd.DataFrame) -> None:
    """Write a table without its index so that the file is absent, old or whole."""
    with _replacing(path) as file:
        table.to_parquet(file, index=False)


@contextmanager
def _replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file that becomes `path` when the body has ended well: fsync, rename.

    Its name is nobody else's, since jobs of several machines may write to one folder, and begins
    with a dot, so that who reads the folder leaves it out.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid4().hex}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)  # half a file, where the disk was full


def read_json(path: Path) -> Any:
    """Read a JSON file; `UserError` names the file when it is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(
            f"`{path}` is not valid JSON ({error}); remove it to have it made again"
        ) from error
