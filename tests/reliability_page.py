"""Write docs/reliability.md, whose tables are the cases that tests run.

python tests/reliability_page.py
"""

from pathlib import Path

from bad_inputs import CASES

PAGE = Path(__file__).parents[1] / "docs" / "reliability.md"
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
    return "\n".join([INTRODUCTION, header, "|---|---|---|---|", *rows, ""])


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
