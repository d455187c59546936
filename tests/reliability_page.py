"""Write docs/reliability.md, whose tables are the cases that tests run.

python tests/reliability_page.py
"""

from pathlib import Path

from bad_inputs import CASES
from test_faults import KINDS, points

PAGE = Path(__file__).parents[1] / "docs" / "reliability.md"
# When each kind of fault was last seen to pass; it takes minutes, so CI leaves it out.
LAST_PASSED = {
    "SIGKILL": "2026-11-23",
    "SIGTERM": "2026-11-23",
    "interrupt": "2026-11-23",
    "exception": "2026-11-23",
    "full disk": "2026-11-23",
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
    return f"{inputs}{FAULTS}\n{table}\nPoints: {places}\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
