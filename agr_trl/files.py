"""Files that are absent, old or whole, and never half."""

import json
import os
from pathlib import Path
from typing import Any

import pandas as pd

from agr_trl.errors import UserError


def write_text(path: Path, text: str) -> None:
    """Write a file so that it is either absent (or old) or whole: temporary file, fsync, rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)  # half a file, where the disk was full


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically, with stable formatting; NaN is refused since JSON has none."""
    write_text(path, json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def write_parquet(path: Path, table: pd.DataFrame) -> None:
    """Write a table without its index under another name, then rename it: absent, old or whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        table.to_parquet(file, index=False)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def read_json(path: Path) -> Any:
    """Read a JSON file; `UserError` names the file when it is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(
            f"`{path}` is not valid JSON ({error}); remove it to have it made again"
        ) from error
