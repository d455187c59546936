"""Tell what a comparison of arms found: one HTML page of its evidence.json, and one picture."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from agr_trl import report_text
from agr_trl.comparison_charts import Bars, Estimate, Forest, arm_charts, difference_bars, forest
from agr_trl.errors import UserError
from agr_trl.evidence_audits import watched
from agr_trl.files import read_json, write_text
from agr_trl.report import (
    PAGE_COLUMNS,
    finished_at,
    is_best,
    page_environment,
    picture,
    read_if_there,
    reason_counts,
    settings_by_section,
    shown_path,
)
from agr_trl.report_text import GLOSSARY, metric_name

Evidence = Mapping[str, Any]

SUBJECT = "adversarial"
LEVEL = 0.05  # of p after Holm
SHOWN_QUERIES = 5  # with the largest wins, and as many with the largest losses
SHOWN_CHARACTERS = 220  # of a document
PANEL, HEAD, FOOT = 470, 64, 20  # of the picture, in pixels
ARMS = {
    "bm25": ("BM25", "words only, no training"),
    "cosine": ("cosine of S", "no retriever training"),
    "round_0": ("R of round 0", "the start that all arms share"),
    "supervised": ("supervised", "judged pairs only, as many steps"),
    "random_crops": ("random crops", "spans of the products' titles"),
    "warm_up_generator": ("warm-up generator", "supervised G, no reward"),
    "adversarial": ("adversarial", "G rewarded for R's loss and for S"),
    "adversarial_no_relevance": ("adversarial without S", "G rewarded for R's loss alone"),
    "relevance_only": ("relevance only", "G rewarded for S alone"),
}
VERDICTS = {"good": "above", "bad": "below", "": "not distinguishable from"}  # by CSS class
COLUMNS = {
    "Judged pairs": ("pr_auc", "roc_auc", "ece", "log_loss"),
    "nDCG@10": PAGE_COLUMNS["nDCG@10"],
    "Judged pool": ("judged/mrr@10", "judged/map"),
}
AUDIT_COLUMNS = {
    "written": ("written", report_text.count),
    "accepted": ("accepted", report_text.count),
    "share": ("acceptance_rate", report_text.percent),
    "copied": ("copy_rate", report_text.percent),
    "distinct words": ("distinct_1", report_text.number),
    "distinct pairs": ("distinct_2", report_text.number),
    "words": ("mean_words", lambda value: report_text.number(value, 1)),
    "p written, accepted": ("probability", report_text.number),
    "S": ("relevance", report_text.number),
    "second judge": ("second_judge", report_text.number),
    "truly relevant": ("truly_relevant_share", report_text.percent),
}
WORDS = {
    "arm": "A way to make synthetic queries; arms have the same judged data, number of rounds, "
    "filter, steps and tuning, and learn from as many synthetic queries, where so many are "
    "accepted. They differ in nothing else, but that an attack may choose its hardest queries "
    "(hardest_of).",
    "fold, seed": "The judged queries are dealt into folds; each fold is scored by a model that "
    "was trained and chosen on the others, once for each seed.",
    "95 % interval": "Where the value lies in 95 % of the resamples of queries and seeds "
    "(bootstrap). It knows nothing of Holm: one that leaves out zero can still be undecided.",
    "p, p after Holm": "How often a difference of this size comes about when the two arms' scores "
    "are swapped at random, query by query; and this corrected for the number of controls. Above "
    f"and below are said where the corrected p is under {LEVEL}.",
    "effect size": "Mean of the queries' differences over their standard deviation: 0.2 is small, "
    "0.5 medium, 0.8 large. On pairs the value of a query is the average precision of its pairs.",
    "detectable": "The smallest true difference that this comparison would have found in 80 % of "
    "its repetitions, at the 5 % level before Holm. Smaller ones may be there unseen.",
    "won, lost, even": "Queries that adversarial ranks better, worse and as well, by their mean "
    "over the seeds.",
    "second judge": "Another scorer of relevance, 0 to 1, that neither trains nor filters "
    "anything. If S rises and it falls, the generator has learned to please S.",
    "copied": "Share of the accepted queries that are an unbroken run of their product's words.",
    "distinct words, pairs": "Different words over all words of a hundred accepted queries of each "
    "fold, and the same of pairs of neighbouring words.",
    "p written, accepted": "Mean probability of “relevant” that the attacked R gave to the "
    "accepted queries; the lower, the harder they are.",
}
SHARED_WORDS = ("S", "accepted", "truly relevant", "cosine of S")


def write_comparison_report(folder: Path) -> Path:
    """Write `report.html` and `arms.svg` into the folder of a comparison; return the page's path.

    Both are self-contained: no script, no request. The picture is for a README. Raises `UserError`
    where the folder holds no evidence.
    """
    if not (folder / "evidence.json").is_file():
        raise UserError(
            f"`{folder}` has no evidence.json; run recipes/compare_arms.py to its end first"
        )
    content = comparison_content(folder)
    page = page_environment().get_template("comparison.html.j2").render(content)
    write_text(folder / "report.html", page)
    write_text(folder / "arms.svg", arms_picture(content["evidence"]))
    return folder / "report.html"


def arms_picture(evidence: Evidence) -> str:
    """Return the arms and their differences side by side as one SVG file."""
    forests = _forests(evidence)
    height = HEAD + max(one.height for one in forests) + FOOT
    return picture("forests.svg.j2", forests, PANEL, height, head=HEAD)


def comparison_content(folder: Path) -> dict[str, Any]:
    """Return everything that the page shows, read from the files of a comparison's folder."""
    evidence = read_json(folder / "evidence.json")
    config = read_if_there(folder / "config.yaml")
    config_file = shown_path(folder / "config.yaml")
    audits = evidence["audits"]
    rows = arm_rows(evidence)
    return {
        "name": folder.resolve().name,
        "finished": finished_at(folder / "evidence.json"),
        "evidence": evidence,
        "metric": metric_name(evidence["primary_metric"]),
        "query_value": "average precision of its judged pairs"
        if evidence["primary_metric"] == "pr_auc"
        else metric_name(evidence["primary_metric"]),
        "subject": SUBJECT,
        "interval": interval,
        "names": {key: arm_name(key) for key in (*evidence["arms"], *audits, *evidence["rounds"])},
        "headline": headline(evidence),
        "verdicts": verdict_groups(evidence["tests"]),
        "verdict_words": VERDICTS,
        "strongest": strongest_control(evidence),
        "is_watched": bool(watched(audits)),
        "sentences": sentences(evidence),
        "facts": _facts(evidence),
        "forests": _forests(evidence),
        "rows": rows,
        "columns": _columns(rows, evidence["primary_metric"]),
        "tests": [
            test | {"name": arm_name(key), "tone": tone(test)}
            for key, test in evidence["tests"].items()
        ],
        "not_controls": [
            test | {"name": arm_name(key), "note": note_of(evidence, key)}
            for table in ("references", "ablations")
            for key, test in evidence.get(table, {}).items()
        ],
        "hard_queries": evidence.get("hard_queries"),
        "beside_s": _beside_s(evidence),
        "round_charts": arm_charts(
            evidence["rounds"], {key: arm_name(key) for key in evidence["rounds"]}, SUBJECT
        ),
        "round_table": round_table(evidence["rounds"]),
        "bars": _bars(evidence),
        "extremes": {
            arm_name(key): extreme_queries(per_query)
            for key, per_query in evidence["per_query"].items()
            if per_query
        },
        "audit_table": {
            column: {arm: write(audit.get(key)) for arm, audit in audits.items()}
            for column, (key, write) in AUDIT_COLUMNS.items()
            if any(audit.get(key) is not None for audit in audits.values())
        },
        "reason_counts": reason_counts(
            [{"queries": audit | {"not_accepted": audit["reasons"]}} for audit in audits.values()]
        ),
        "reasons": report_text.reason_words(config.get("reward") or {}),
        "examples": [
            example | {"document": shortened(example["document"])}
            for example in evidence["examples"]
        ],
        "config_file": config_file,
        "settings": settings_by_section(config),
        "command": f"python recipes/compare_arms.py --config {config_file} --output_dir runs/again"
        if config
        else "",
        "words": WORDS | {word: GLOSSARY[word] for word in SHARED_WORDS},
    }


def arm_name(key: str) -> str:
    """Return an arm's name for readers."""
    return ARMS[key][0] if key in ARMS else key.replace("_", " ")


def note_of(evidence: Evidence, key: str) -> str:
    """Return what a row is, or for an ablation what it changes."""
    if key in ARMS:
        return ARMS[key][1]
    changes = evidence.get("ablations", {}).get(key, {}).get("changes", {})
    return ", ".join(f"{name} {value}" for name, value in changes.items())


def tone(test: Mapping[str, Any]) -> str:
    """Return the CSS class of a test: good, bad, or none for a difference that may be chance."""
    if test["p_holm"] is None or test["p_holm"] >= LEVEL:
        return ""
    return "good" if test["difference"] > 0 else "bad"


def verdict_groups(tests: Mapping[str, Mapping[str, Any]]) -> dict[str, list[str]]:
    """Return the names of the controls by the tone of their test; an empty group is left out."""
    groups = {
        kind: [arm_name(key) for key, test in tests.items() if tone(test) == kind]
        for kind in VERDICTS
    }
    return {kind: names for kind, names in groups.items() if names}


def headline(evidence: Evidence) -> str:
    """Return in one sentence how many controls adversarial is above and below."""
    groups = verdict_groups(evidence["tests"])
    metric, total = metric_name(evidence["primary_metric"]), len(evidence["tests"])
    if not groups:
        return f"Adversarial in {metric}, without a control to compare it with"
    if total == 1:
        ((kind, names),) = groups.items()
        return f"Adversarial is {VERDICTS[kind]} {names[0]} in {metric}"
    if list(groups) == [""]:
        return f"Adversarial is not distinguishable from any of {total} controls in {metric}"
    if len(groups) == 1:
        (kind,) = groups
        return f"Adversarial is {VERDICTS[kind]} each of {total} controls in {metric}"
    parts = [f"{VERDICTS[kind]} {len(names)}" for kind, names in groups.items()]
    return (
        f"Of {total} controls, adversarial is {', '.join(parts[:-1])} and {parts[-1]} in {metric}"
    )


def strongest_control(evidence: Evidence) -> dict[str, Any] | None:
    """Return the control with the highest mean: its name, interval, and its test."""
    if not evidence["tests"]:
        return None
    metric = evidence["primary_metric"]
    key = max(evidence["tests"], key=lambda control: evidence["arms"][control][metric]["mean"])
    test = evidence["tests"][key]
    return {
        "name": arm_name(key),
        "value": evidence["arms"][key][metric],
        "test": test,
        "tone": tone(test),
    }


def sentences(evidence: Evidence) -> list[str]:
    """Return what to know before believing the headline."""
    tests, metric = evidence["tests"].values(), evidence["primary_metric"]
    seeds, folds = len(evidence["seeds"]), evidence["folds"]
    written = [
        f"On {evidence['dataset']}: {evidence['queries']:,} judged queries with "
        f"{evidence['pairs']:,} pairs, {_counted(seeds, 'seed')}, {_counted(folds, 'fold')}; in "
        "every seed each query is scored by a model that never saw it."
    ]
    detectable = [test["detectable"] for test in tests if test["detectable"] is not None]
    if detectable:
        low, high = report_text.number(min(detectable)), report_text.number(max(detectable))
        size = low if low == high else f"{low} to {high}, depending on the control"
        written.append(
            f"The smallest difference that could have been seen is {size} (80 % power at the 5 % "
            "level, before Holm); smaller ones may be there unseen."
        )
    mean = evidence["arms"][SUBJECT][metric]["mean"]
    better = [
        f"{arm_name(key)} ({report_text.number(evidence['arms'][key][metric]['mean'])})"
        for key in ("bm25", "cosine")
        if metric in evidence["arms"].get(key, {}) and evidence["arms"][key][metric]["mean"] > mean
    ]
    if (differ := evidence.get("disagreement")) and differ["s_right"] is not None:
        written.append(
            f"S and the attacked retriever differ widely on {report_text.percent(differ['share'])} "
            f"of the judged pairs; people side with S in {report_text.percent(differ['s_right'])} "
            "of these. An attack finds such pairs and S labels them: near 50 % it teaches chance."
        )
    if better:
        written.append(f"Better on average without any retriever: {' and '.join(better)}.")
    return written


def arm_rows(evidence: Evidence) -> list[dict[str, Any]]:
    """Return the rows of the table of arms: name, note, means, and which of them are the best."""
    rows: list[dict[str, Any]] = [
        {
            "key": key,
            "name": arm_name(key),
            "note": note_of(evidence, key),
            "primary": metrics.get(evidence["primary_metric"]),
            "metrics": {name: value["mean"] for name, value in metrics.items()},
        }
        for key, metrics in evidence["arms"].items()
    ]
    for row in rows:
        row["best"] = {key for key in row["metrics"] if is_best(row, rows, key)}
    return rows


def round_table(
    rounds: Mapping[str, Sequence[Mapping[str, Any]]],
) -> dict[str, list[Mapping[str, Any]]]:
    """Return each arm's steps by the number of the round, {} for a round that it does not have."""
    last = max((this["round"] for steps in rounds.values() for this in steps), default=-1)
    table = {}
    for arm, steps in rounds.items():
        by_number = {this["round"]: this for this in steps}
        table[arm] = [by_number.get(number, {}) for number in range(last + 1)]
    return table


def extreme_queries(per_query: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the queries with the largest wins, then those with the largest losses, worst last."""
    rows = [{**row, "difference": row["adversarial"] - row["control"]} for row in per_query]
    rows.sort(key=lambda row: -row["difference"])
    wins = [row for row in rows if row["difference"] > 0][:SHOWN_QUERIES]
    losses = [row for row in rows if row["difference"] < 0][-SHOWN_QUERIES:]
    return wins + losses


def shortened(text: str) -> str:
    """Return the beginning of a text, cut between words."""
    if len(text) <= SHOWN_CHARACTERS:
        return text
    beginning = text[:SHOWN_CHARACTERS]
    return (beginning.rpartition(" ")[0] or beginning).rstrip(" ,;.") + " …"


def interval(low: float | None, high: float | None, is_signed: bool = False) -> str:
    """Return an interval in brackets, nothing where it is not known."""
    if low is None or high is None:
        return ""
    write = report_text.signed if is_signed else report_text.number
    return f"[{write(low)}, {write(high)}]"


def _forests(evidence: Evidence) -> list[Forest]:
    return [_forest_of_arms(evidence), *_forest_of_differences(evidence)]


def _forest_of_arms(evidence: Evidence) -> Forest:
    metric = evidence["primary_metric"]
    estimates = []
    for key, metrics in evidence["arms"].items():
        if metric in metrics:
            value = metrics[metric]
            text = f"{report_text.number(value['mean'])} {interval(value['low'], value['high'])}"
            kind = "subject" if key == SUBJECT else ""
            estimates.append(
                Estimate(arm_name(key), value["mean"], value["low"], value["high"], text, kind)
            )
    return forest(
        f"{metric_name(metric)} of each arm",
        "means with 95 % intervals; the broken line is adversarial",
        estimates,
        evidence["arms"][SUBJECT][metric]["mean"],
    )


def _forest_of_differences(evidence: Evidence) -> list[Forest]:
    if not evidence["tests"]:
        return []
    estimates = []
    for key, test in evidence["tests"].items():
        ends = interval(test["low"], test["high"], is_signed=True)
        estimates.append(
            Estimate(
                arm_name(key),
                test["difference"],
                test["low"],
                test["high"],
                f"{report_text.signed(test['difference'])} {ends}",
                tone(test) or "open",
                test["detectable"],
            )
        )
    title = f"Adversarial − control in {metric_name(evidence['primary_metric'])}"
    note = "paired, with 95 % intervals; hollow: not significant; grey: too small to see"
    return [forest(title, note, estimates, 0.0)]


def _bars(evidence: Evidence) -> list[Bars]:
    per_query = {key: rows for key, rows in evidence["per_query"].items() if rows}
    largest = max(
        (abs(row["adversarial"] - row["control"]) for rows in per_query.values() for row in rows),
        default=0.0,
    )
    return [
        difference_bars(arm_name(key), rows, evidence["tests"][key], largest or 1.0)
        for key, rows in per_query.items()
    ]


def _columns(rows: Sequence[Mapping[str, Any]], primary: str) -> dict[str, list[str]]:
    """Return the metrics that any arm has, by group, the primary one first and alone."""
    present = dict.fromkeys(key for row in rows for key in row["metrics"] if key != primary)
    columns = {"Primary": [primary]}
    columns |= {group: [key for key in keys if key in present] for group, keys in COLUMNS.items()}
    known = {key for keys in COLUMNS.values() for key in keys}
    columns["Other"] = [key for key in present if key not in known]
    return {group: keys for group, keys in columns.items() if keys}


def _beside_s(evidence: Evidence) -> dict[str, Any]:
    """Return the rows of S and R together, {} where the evidence has none."""
    found = evidence.get("beside_s", {})
    metrics = found.get("arms", {}).get("cosine", {})
    others = [key for key in metrics if key != evidence["primary_metric"]]
    return {**found, "others": others} if metrics else {}


def _facts(evidence: Evidence) -> dict[str, str]:
    return {
        "Data": evidence["dataset"],
        "Judged queries": report_text.count(evidence["queries"]),
        "Judged pairs": report_text.count(evidence["pairs"]),
        "Seeds": ", ".join(map(str, evidence["seeds"])),
        "Folds": str(evidence["folds"]),
        "Resamples": report_text.count(evidence["resamples"]),
        "Primary metric": metric_name(evidence["primary_metric"]),
        "Commit": evidence["commit"],
        "Hardware": evidence["hardware"],
        "Time, all arms": report_text.duration(60 * evidence["minutes"]),
    }


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
