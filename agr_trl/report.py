"""Tell what an adversarial run did: one HTML page of its run folder, a table for the terminal."""

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
import yaml

from agr_trl import report_text
from agr_trl.charts import round_charts, training_charts
from agr_trl.errors import UserError
from agr_trl.evaluation import METRIC_DEFINITION
from agr_trl.files import read_json, write_text
from agr_trl.query_files import read_queries
from agr_trl.report_text import DEV_WARNING, GLOSSARY, LOWER_IS_BETTER, metric_name

Metrics = Mapping[str, Any]

SAMPLED_QUERIES = 40  # of a round, to look at
SAMPLED_REJECTED = 12  # so many of them not accepted, more only where too few were accepted
GAP, MARGIN = 28, 20  # around the panels of a picture, in pixels
TERMINAL_COLUMNS = ("pr_auc", "roc_auc", "judged/ndcg@10", "rerank/ndcg@10", "blend/ndcg@10")
PAGE_COLUMNS = {
    "Judged pairs": ("pr_auc", "roc_auc", "f1", "log_loss", "ece"),
    "nDCG@10": ("judged/ndcg@10", "rerank/ndcg@10", "blend/ndcg@10"),
}
ROUND_COLUMNS = ("pr_auc", "roc_auc", "log_loss", *PAGE_COLUMNS["nDCG@10"], "blend_weight")
QUERY_COLUMNS = {
    "written": ("written", report_text.count),
    "accepted": ("accepted", report_text.count),
    "share": ("acceptance_rate", report_text.percent),
    "p written": ("mean_probability", report_text.number),
    "p after": ("mean_probability_after", report_text.number),
    "p written, accepted": ("accepted_mean_probability", report_text.number),
    "S": ("mean_relevance", report_text.number),
    "truly relevant": ("truly_relevant_share", report_text.percent),
    "copied": ("copy_rate", report_text.percent),
    "repeated": ("duplicate_rate", report_text.percent),
    "distinct pairs": ("distinct_2", report_text.number),
    "words": ("query_words", lambda value: report_text.number(value, 1)),
}


def write_report(run_folder: Path) -> Path:
    """Write `report.html` into a run folder and return its path.

    The page is self-contained: no script, no request. What a run lacks (test, ranking metrics,
    logs) is left out. Raises `UserError` where the folder holds no finished run.
    """
    if not (run_folder / "metrics.json").is_file():
        raise UserError(
            f"`{run_folder}` has no metrics.json; run recipes/train_adversarial.py to its end first"
        )
    page = page_environment().get_template("report.html.j2").render(report_content(run_folder))
    write_text(run_folder / "report.html", page)
    return run_folder / "report.html"


def summary_table(metrics: Metrics) -> str:
    """Return a run's metrics.json content as plain text: before and after, "-" for no value."""
    rounds = round_rows(metrics)
    parts = []
    if metrics.get("test"):
        rows = {row["name"]: row["metrics"] for row in before_and_after(metrics, "test")}
        parts += ["test: its queries chose nothing", _text_table(rows), ""]
    rows = {row["name"]: row["metrics"] for row in before_and_after(metrics, "dev")[:2]}
    rows |= {f"{this['name']}, {this['status']}": this["dev"] for this in rounds}
    parts += [f"dev: {DEV_WARNING}", _text_table(rows)]
    shares = [
        f"round {this['number']} {report_text.percent(this['queries']['truly_relevant_share'])}"
        for this in rounds
        if this["queries"].get("truly_relevant_share") is not None
    ]
    if shares:
        parts += ["", f"accepted queries that are truly relevant: {', '.join(shares)}"]
    return "\n".join(parts)


def report_content(run_folder: Path) -> dict[str, Any]:
    """Return everything that the page shows, read from the files of a run folder."""
    metrics = read_json(run_folder / "metrics.json")
    config = read_if_there(run_folder / "config.yaml")
    times = read_if_there(run_folder / "timings.json")
    split = "test" if metrics.get("test") else "dev"
    rounds = round_rows(metrics)
    reasons = report_text.reason_words(config.get("reward") or {})
    samples, logs = {}, {}
    for this in rounds:
        logs[this["number"]], queries = read_round(run_folder, this)
        if queries is not None:
            samples[this["number"]] = sample_rows(queries, reasons)
    config_file = shown_path(run_folder / "config.yaml")
    return {
        "name": run_folder.resolve().name,
        "metrics": metrics,
        "config": config,
        "config_file": config_file,
        "settings": settings_by_section(config),
        "times": times,
        "finished": finished_at(run_folder / "metrics.json"),
        "command": f"python recipes/train_adversarial.py --config {config_file} "
        "--output_dir runs/again",
        "facts": _facts(metrics, config, read_if_there(run_folder / "run.json"), times),
        "split": split,
        "answer": _answer(metrics, split),
        "rows": before_and_after(metrics, split),
        "columns": _page_columns(metrics, split),
        "dev_rows": before_and_after(metrics, "dev"),
        "dev_columns": _page_columns(metrics, "dev"),
        "rounds": rounds,
        "round_columns": [
            key
            for key in ROUND_COLUMNS
            if key != metrics["dev_metric"]
            and any(this["dev"].get(key) is not None for this in rounds)
        ],
        "query_table": _query_table(rounds),
        "round_charts": round_charts(metrics["dev_metric"], rounds),
        "training_charts": training_charts(logs),
        "reasons": reasons,
        "reason_counts": reason_counts(rounds),
        "samples": samples,
    }


def before_and_after(metrics: Metrics, split: str) -> list[dict[str, Any]]:
    """Return the four rows of the answer on one split: name, note, metrics and best columns."""
    best = metrics["best_round"]
    if split == "test":
        systems = metrics["test"]
    else:
        systems = dict(metrics.get("baselines") or {})
        systems |= {"supervised": metrics["rounds"][0]["dev"], "adversarial": metrics["dev"]}
    last = f"adversarial (round {best})" if best else "adversarial (none kept)"
    names = {
        "bm25": ("BM25", "words only, no training"),
        "cosine": ("cosine of S", "no retriever training"),
        "supervised": ("supervised (round 0)", "R on judged pairs"),
        "adversarial": (last, "and on generated queries" if best else "same as round 0"),
    }
    rows = [
        {"key": key, "name": name, "note": note, "metrics": systems.get(key) or {}}
        for key, (name, note) in names.items()
    ]
    for row in rows:
        row["best"] = {key for key in row["metrics"] if is_best(row, rows, key)}
    return rows


def round_rows(metrics: Metrics) -> list[dict[str, Any]]:
    """Return what each round did: its name, status, dev metrics, change to the bar, and queries."""
    rows: list[dict[str, Any]] = []
    bar = None
    for this in metrics["rounds"]:
        index, dev = this["round"], this.get("dev") or {}
        value = dev.get(metrics["dev_metric"])
        is_kept = bool(this.get("kept", True))
        status = "start" if not index else "kept" if is_kept else "rolled back"
        rows.append(
            {
                "number": index,
                "name": f"adversarial round {index}" if index else "supervised (round 0)",
                "status": "exported" if index == metrics["best_round"] else status,
                "kept": is_kept,
                "dev": dev,
                "change": difference(value, bar),
                "queries": dict(this.get("queries") or {}),
            }
        )
        if is_kept:
            bar = value
    return rows


def read_round(run_folder: Path, row: dict[str, Any]) -> tuple[Any, pd.DataFrame | None]:
    """Return what a round's generator logged, and its queries where they are there.

    The round's `row` is given R's mean p after training, which only the queries know.
    """
    folder = run_folder / f"round_{row['number']:02d}"
    queries = None
    if (folder / "queries.parquet").is_file():
        queries = read_queries(folder / "queries.parquet")
        if len(queries) and "probability_after" in queries:
            row["queries"]["mean_probability_after"] = queries["probability_after"].mean()
    return read_if_there(folder / "generator_log.json"), queries


def sample_rows(queries: pd.DataFrame, reasons: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return a seeded sample of a round's queries: accepted first, each part hardest first."""
    accepted, rejected = queries[queries["accepted"]], queries[~queries["accepted"]]
    num_accepted = min(len(accepted), SAMPLED_QUERIES - min(len(rejected), SAMPLED_REJECTED))
    parts = [
        part.sample(min(size, len(part)), random_state=0).sort_values("probability", kind="stable")
        for part, size in ((accepted, num_accepted), (rejected, SAMPLED_QUERIES - num_accepted))
    ]
    return query_rows(pd.concat(parts), reasons)


def query_rows(queries: pd.DataFrame, reasons: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return what a table of queries shows of each: texts, S, R's probability, the verdict."""
    rows: list[dict[str, Any]] = queries.to_dict("records")
    return [
        {
            "title": row.get("title") or row.get("document") or row.get("product_id"),
            "query": row["query"],
            "relevance": row.get("relevance"),
            "before": row.get("probability"),
            "after": row.get("probability_after"),
            "accepted": row["accepted"],
            "verdict": verdict(row["reason"], reasons),
        }
        for row in rows
    ]


def verdict(reason: str, reasons: Mapping[str, str]) -> str:
    """Return a reason of the acceptance filter in words, '' is accepted."""
    return reasons.get(reason, reason.replace("_", " "))


def difference(after: float | None, before: float | None) -> float | None:
    """Return after - before, None where one of them is missing."""
    return None if after is None or before is None else after - before


def tone(change: float | None, key: str) -> str:
    """Return the CSS class of a change of a metric: good, bad, or none for nothing to see."""
    if change is None or abs(change) < 0.0005:
        return ""
    return "good" if (change > 0) != (key in LOWER_IS_BETTER) else "bad"


def is_best(row: Metrics, rows: Sequence[Metrics], key: str) -> bool:
    """Whether a row's value of a metric is the best among the rows; ties are all best."""
    values = [value for r in rows if (value := r["metrics"].get(key)) is not None]
    best = min if key in LOWER_IS_BETTER else max
    return row["metrics"][key] is not None and row["metrics"][key] == best(values)


def reason_counts(rounds: Sequence[Metrics]) -> dict[str, list[tuple[int, float | None]]]:
    """Return for each reason that occurs ('' is accepted) its count and share in each round."""
    counts = [
        {"": this["queries"].get("accepted", 0), **(this["queries"].get("not_accepted") or {})}
        for this in rounds
    ]
    reasons = dict.fromkeys(reason for one in counts for reason in one)
    return {
        reason: [
            (
                one.get(reason, 0),
                one.get(reason, 0) / sum(one.values()) if any(one.values()) else None,
            )
            for one in counts
        ]
        for reason in reasons
    }


def settings_by_section(config: Metrics) -> dict[str, dict[str, Any]]:
    """Return the sections of a config; values outside of any are the section "general"."""
    general = {key: value for key, value in config.items() if not isinstance(value, dict)}
    sections = {key: value for key, value in config.items() if isinstance(value, dict) and value}
    return ({"general": general} if general else {}) | sections


def read_if_there(path: Path) -> Any:
    """Return the content of a JSON or YAML file, an empty dictionary where there is none."""
    if not path.is_file():
        return {}
    if path.suffix == ".json":
        return read_json(path)
    return yaml.safe_load(path.read_text(encoding="utf-8")) or {}


def shown_path(path: Path) -> str:
    """Return a path as one would type it from here, without this machine's folders."""
    full, here = path.resolve(), Path.cwd()
    shown = full.relative_to(here) if full.is_relative_to(here) else Path(*full.parts[-2:])
    return shown.as_posix()


def finished_at(path: Path) -> str:
    """Return when a file was last written, to the minute."""
    return f"{datetime.fromtimestamp(path.stat().st_mtime, UTC):%Y-%m-%d %H:%M} UTC"


def template_environment(finalize: Callable[[Any], Any]) -> jinja2.Environment:
    """Return the package's templates; `finalize` sees every value that is put into a text."""
    return jinja2.Environment(
        loader=jinja2.PackageLoader("agr_trl"),
        autoescape=True,
        finalize=finalize,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def picture(
    template: str, panels: Sequence[Any], panel_width: int, height: float, **values: Any
) -> str:
    """Return panels side by side as one SVG file that needs no style from around it.

    `panels` have a title and a note; sizes are in pixels.
    """
    places = [MARGIN + place * (panel_width + GAP) for place in range(len(panels))]
    return (
        page_environment()
        .get_template(template)
        .render(
            panels=list(zip(panels, places, strict=True)),
            panel_width=panel_width,
            width=2 * MARGIN + len(panels) * (panel_width + GAP) - GAP,
            height=height,
            **values,
        )
    )


def page_environment() -> jinja2.Environment:
    """Return the templates with the filters and words that all pages share; texts are escaped."""
    environment = template_environment(
        # Every text that is put into the page passes here, before it is escaped.
        finalize=lambda value: report_text.visible(value) if isinstance(value, str) else value
    )
    environment.filters |= {
        "number": report_text.number,
        "signed": report_text.signed,
        "percent": report_text.percent,
        "count": report_text.count,
        "duration": report_text.duration,
        "metric": metric_name,
        "short_metric": lambda key: (
            metric_name(key).removeprefix("nDCG@10 (").rstrip(")")
            if key in PAGE_COLUMNS["nDCG@10"]
            else metric_name(key)
        ),
    }
    environment.globals |= {
        "difference": difference,
        "tone": tone,
        "dev_warning": DEV_WARNING,
        "lower_is_better": LOWER_IS_BETTER,
        "definitions": METRIC_DEFINITION,
        "glossary": GLOSSARY,
    }
    return environment


def _text_table(rows: Mapping[str, Metrics]) -> str:
    columns = [
        key for key in TERMINAL_COLUMNS if any(r.get(key) is not None for r in rows.values())
    ]
    lines = [["", *columns]]
    for name, row in rows.items():
        values = [row.get(key) for key in columns]
        lines.append([name, *("-" if value is None else f"{value:.4f}" for value in values)])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join([first.ljust(widths[0]), *map(str.rjust, rest, widths[1:])]).rstrip()
        for first, *rest in lines
    )


def _answer(metrics: Metrics, split: str) -> dict[str, Any]:
    """Return the headline of the page, its two numbers, and what to know before believing them."""
    key, name = metrics["dev_metric"], metric_name(metrics["dev_metric"])
    bm25, cosine, supervised, last = before_and_after(metrics, split)
    before, after = supervised["metrics"].get(key), last["metrics"].get(key)
    change = difference(after, before)
    if not metrics["best_round"]:
        headline = "No adversarial round was kept: the supervised retriever stands"
    elif not tone(change, key):
        headline = f"Adversarial training left {name} on {split} as it was"
    else:
        verb = "raised" if (change or 0) > 0 else "lowered"
        headline = f"Adversarial training {verb} {name} on {split}"
    better = [
        f"{row['name']} ({report_text.number(row['metrics'][key])})"
        for row in (bm25, cosine)
        if (difference(row["metrics"].get(key), after) or 0) > 0
    ]
    sentences = [f"Still better without any retriever: {' and '.join(better)}."] if better else []
    if split == "dev":
        sentences.append(f"There is no test split: {DEV_WARNING}.")
    sentences.append(
        "One run with one seed: a change of a point or two can be chance, and only other sources "
        "of queries on the same budget can show that it is the adversary that did it."
    )
    return {
        "headline": headline,
        "before": before,
        "after": after,
        "change": change,
        "sentences": sentences,
    }


def _facts(metrics: Metrics, config: Metrics, state: Metrics, times: Metrics) -> dict[str, str]:
    """Return what was run, by term; what is not known is left out."""
    stages = {name: config.get(name) or {} for name in ("retriever", "warm_up", "reward")}
    test = (metrics.get("test") or {}).get("supervised")
    models = {
        "Retriever R from": stages["retriever"].get("retriever_name_or_path"),
        "Generator G from": stages["warm_up"].get("generator_name_or_path"),
    }
    models = {
        term: "new, for this catalogue" if name == "new" else name for term, name in models.items()
    }
    facts = {
        "Data": metrics.get("dataset_format"),
        "Dev": _size(metrics.get("dev")),
        "Test": _size(test),
        **models,
        "Relevance scorer S": stages["reward"].get("relevance_model"),
        "Adversarial rounds": str(len(metrics["rounds"]) - 1),
        "Seed": config.get("seed"),
        "Commit": state.get("commit"),
        "Data fingerprint": (state.get("data_fingerprint") or "")[:12],
        "Time, all stages": report_text.duration(sum(times.values())) if times else None,
    }
    return {term: str(fact) for term, fact in facts.items() if fact not in (None, "")}


def _size(metrics: Metrics | None) -> str | None:
    if not metrics or metrics.get("pairs") is None:
        return None
    pairs = f"{report_text.count(metrics['pairs'])} judged pairs"
    if metrics.get("queries") is None:
        return pairs
    return f"{pairs}, {report_text.count(metrics['queries'])} queries"


def _page_columns(metrics: Metrics, split: str) -> dict[str, list[str]]:
    """Return the columns that have a value, by group; the dev metric is always among them."""
    rows = before_and_after(metrics, split)
    columns = {
        group: [key for key in keys if any(row["metrics"].get(key) is not None for row in rows)]
        for group, keys in PAGE_COLUMNS.items()
    }
    chosen = metrics["dev_metric"]
    if not any(chosen in keys for keys in columns.values()):
        columns["Dev metric"] = [chosen]
    return {group: keys for group, keys in columns.items() if keys}


def _query_table(rounds: Sequence[Metrics]) -> dict[str, list[str]]:
    """Return the columns of the table of G's queries that any round has: a text for each round."""
    return {
        name: [write(this["queries"].get(key)) for this in rounds]
        for name, (key, write) in QUERY_COLUMNS.items()
        if any(this["queries"].get(key) is not None for this in rounds)
    }
