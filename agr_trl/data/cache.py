"""Where downloaded and generated data lies between runs."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """Return $XDG_CACHE_HOME/agr_trl, or ~/.cache/agr_trl where the variable is not set."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "agr_trl"
