"""The environments that contestants run in: the project's own, and one a peer that needs its own.

They are made once, below `benchmarks/.environments/` (git-ignored), from pinned packages.
"""

import subprocess
import sys
import venv
from pathlib import Path

FOLDER = Path(__file__).with_name(".environments")
PROJECT = "project"
TORCH = "torch>=2.6,<2.14"
PEERS = {
    # The last TRL whose PPO trainer takes encoder-decoders, and the transformers of its time.
    "trl_0_11": [
        "trl==0.11.4",
        "transformers==4.45.2",
        "peft==0.13.2",
        "accelerate==1.0.1",
        "rich",
        TORCH,
    ],
    "sentence_transformers": ["sentence-transformers==6.2.0", "datasets", "accelerate", TORCH],
    "rank_bm25": ["rank-bm25==0.2.2", "pandas", "sentence-transformers==6.2.0", TORCH],
}


def python_of(name: str) -> str:
    """Return the interpreter of an environment, which is made now if it is not there yet."""
    if name == PROJECT:
        return sys.executable
    folder = FOLDER / name
    python = folder / "bin" / "python"
    made = folder / "made"
    if not made.is_file():
        print(f"making the environment {name}: {' '.join(PEERS[name])}", file=sys.stderr)
        venv.create(folder, with_pip=True, clear=True)
        install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        # Where packages lie is the machine's business; what they print is not part of a table.
        subprocess.run([*install, *PEERS[name]], check=True, stdout=sys.stderr)
        made.touch()
    return str(python)
