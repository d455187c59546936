"""What a terminal is shown: progress bars, and texts that give it no orders."""

import os
import re
import sys
from collections.abc import Iterable
from typing import TypeVar

from huggingface_hub import get_token
from tqdm.auto import tqdm

from agr_trl.report_text import visible

T = TypeVar("T")
_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{16,}")  # what the Hub hands out


def terminal_text(text: str) -> str:
    """Return a text as it may be shown: control characters written out, tokens of the Hub not.

    A product's text could else colour, hide or overwrite what stands around it. Line breaks stay.
    """
    shown = "\n".join(map(visible, text.split("\n")))
    if token := get_token():
        shown = shown.replace(token, "***")
    return _TOKEN.sub("***", shown)


def shows_progress() -> bool:
    """Whether progress bars are drawn: on a terminal, by one process; a log file gets none.

    Asks the launcher's RANK, since `PartialState` would choose a device for who only scores.
    """
    return sys.stderr.isatty() and os.environ.get("RANK", "0") == "0"


def progress(items: Iterable[T], description: str, total: int | None = None) -> Iterable[T]:
    """Iterate with a progress bar, where one is shown and it takes more than a second."""
    bar = {"disable": not shows_progress(), "delay": 1, "leave": False}
    return tqdm(items, desc=description, total=total, **bar)
