"""Write docs/reliability.md, whose tables are the cases that tests run.

python tests/reliability_page.py
"""

from pathlib import Path

from bad_inputs import CASES
from test_faults import KINDS, LOST, LOST_AT, points

PAGE = Path(__file__).parents[1] / "docs" / "reliability.md"
# When each kind of fault was last seen to pass; it takes minutes, so CI leaves it out.
LAST_PASSED = {
    "SIGKILL": "2026-11-23",
    "SIGTERM": "2026-11-23",
    "interrupt": "2026-11-23",
    "exception": "2026-11-23",
    "full disk": "2026-11-23",
    "worker": "2026-11-23",
    "main process": "2026-11-23",
}
MACHINE = "AMD EPYC, 2 cores, torch 2.13.0"
FAULTS = """
## Faults
A job of two rounds is stopped at each of the points below, one after the other, and begun again
each time (`tests/test_faults.py`, marked slow, run by `make test-all`). The run folder that it ends
with is the one of a job that was never stopped, byte for byte: models, queries, metrics and logs
(times and the report apart). After a full disk every file that grows beyond 2,000 bytes stays half
written.
"""
TWO_PROCESSES = """
A job of two processes (`torchrun --nproc_per_node 2`) loses one of them by SIGKILL. The other ends
too and the command fails, within three minutes, and the same command resumes to the run folder of
two processes that lost nothing, byte for byte.
"""
FUZZING = """
## Any file
Files of every kind that is read are broken in random ways (cut, flipped, repeated, other encodings,
deep nesting, values and columns of any type, texts of 200,000 letters): each is a data set or one
line that says what is wrong, in seconds, and in memory that grows with the file
(`tests/test_fuzzed_readers.py`, with hypothesis, more examples in the slow part; `make fuzz`, with
atheris). Bounds: JSON as deep as Python reads it, YAML nested 50 times and of 100,000 values, a
Parquet file of no more than 8 rows a byte and 1,000 times its size, spelling variants looked for in
queries of up to 200 letters. What is not bounded: a Parquet file may repeat one long text in every
row, which takes as much memory as it says.
"""
LONG_RUNS = """
## Long runs
`tests/test_long_runs.py`, marked slow, on toy models beside other work; both passed on 2026-11-23
(AMD EPYC, 2 cores, torch 2.13.0).

| 200 rounds (`kept_models: 2`, 13 of them kept), median | rounds 40 to 80 | rounds 160 to 200 |
|---|---|---|
| resident memory, MiB | 618.5 | 629.8 |
| open files | 15 | 15 |
| models on disk, MiB | 0.67 | 0.67 |
| all on disk, MiB: queries, logs and numbers of each round stay | 1.35 | 2.78 |

| 10,000 policy-gradient steps of a tiny T5, median | steps 2,000 to 4,000 | steps 8,000 to 10,000 |
|---|---|---|
| resident memory, MiB | 583.9 | 584.2 |

Memory grows by about 0.06 MiB a round, in native code: the number of Python objects stays the
same but for some weak references.
"""
SECURITY = """
## Security
What comes from others (data, models, settings, names) is read, never run. `tests/test_security.py`
has a test for each line that names no other.

**Loaded:** data as CSV, TSV, JSON Lines and Parquet; models and adapters as safetensors, tokenizers
as their own files (`tests/test_bad_inputs.py`); settings by YAML's safe loader. A Trainer reads
back its own checkpoints of the same run folder, with PyTorch's loader for tensors alone.

**Refused:** weights in a pickle, unless AGR_TRL_PICKLE_WEIGHTS names the model, with a warning
(`tests/test_published_models.py`); code that a model brings along (but where a trainer in Python is
told `trust_remote_code`); a WANDS download whose content is not the published one
(`tests/data/test_wands_download.py`); names of ablations that would be paths
(`tests/test_arms.py`). No module of this package calls `eval`, `exec`, `pickle`,
`torch.load` or a shell; a test reads the source for them.

**Shown as text:** products, queries and names in reports (HTML), the app (`tests/test_app.py`),
cards (Markdown, `tests/test_hub.py`), terminal output, logs and TRL's table of completions
(`tests/test_seq2seq_trainer.py`): markup is escaped, control and bidirectional characters are
written out. Nothing is written as CSV but the demo shop, so no cell is a formula. Parquet and JSON
hold the texts as they were. Ids and texts of the data are never paths.

**Tokens** of the Hub come from `hf auth login`, HF_TOKEN or, in a single stage, `--hub_token`. They
are in no file of a run, not even in a Trainer's `training_args.bin`, are blotted out in logs,
errors and tracebacks, and an upload whose texts name one is refused. The app serves this machine
alone unless told otherwise (`tests/test_app.py`); reports are files.

**Dependencies:** `make audit` asks PyPI for known weaknesses of what is installed, and says so
where it cannot.
"""
INTRODUCTION = """# Reliability

This page is written by `python tests/reliability_page.py` from the cases that the tests run.

## Broken inputs
Each of these ends the job with exit status 2 and one line, `error: …`, that holds the words in the
last column, before anything is trained (`tests/test_bad_inputs.py`). Errors that are not the user's
keep their traceback.
"""


def page() -> str:
    """Return the page's text."""
    rows = [f"| {c.kind} | {c.broken} | `{c.job}.py` | {c.says.replace('|', '/')} |" for c in CASES]
    header = "| input | what is broken | the job that meets it | the line says |"
    inputs = "\n".join([INTRODUCTION, header, "|---|---|---|---|", *rows, ""])
    passed = [f"| {kind} | {LAST_PASSED.get(kind, 'not yet run whole')} |" for kind in KINDS]
    table = "\n".join([f"| fault | last passed ({MACHINE}) |", "|---|---|", *passed, ""])
    places = ", ".join(f"`{place}`" for place in sorted(points()))
    lost_at = ", ".join(f"`{place}`" for place in LOST_AT)
    lost = [f"| {process} | {LAST_PASSED[process]} |" for process in LOST]
    lost_table = "\n".join([f"| lost | last passed ({MACHINE}) |", "|---|---|", *lost, ""])
    faults = f"{FAULTS}\n{table}\nPoints: {places}\n"
    two = f"{TWO_PROCESSES}\n{lost_table}\nAt: {lost_at}\n"
    return f"{inputs}{faults}{two}{FUZZING}{LONG_RUNS}{SECURITY}"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
