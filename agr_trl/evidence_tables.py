"""The evidence of a comparison as text: tables in Markdown, for the terminal and for README."""

from collections.abc import Mapping, Sequence
from typing import Any

from agr_trl.evidence import TESTED
from agr_trl.report_text import metric_name, number, signed


def evidence_table(evidence: Mapping[str, Any]) -> str:
    """Return the evidence as text: what was compared, tables in Markdown, the alarms."""
    seeds, folds = len(evidence["seeds"]), evidence["folds"]
    head = (
        f"{evidence['dataset']}: {evidence['queries']} queries, {evidence['pairs']} judged pairs, "
        f"{seeds} seed{'s' * (seeds != 1)}, {folds} folds, {evidence['resamples']} resamples"
    )
    alarms = [f"alarm: {sentence}" for sentence in evidence["alarms"]]
    tables = [
        primary_table(evidence),
        *([_hard_queries_table(evidence["hard_queries"])] if evidence["hard_queries"] else []),
        _beside_s_table(evidence),
        _other_metrics_table(evidence),
    ]
    return "\n\n".join([head, *tables, *alarms])


def primary_table(evidence: Mapping[str, Any]) -> str:
    """Return the primary metric of each arm and `adversarial`'s differences from it, in Markdown.

    "–" stands where there is no value, or nothing to compare.
    """
    primary = evidence["primary_metric"]
    tests = evidence["tests"] | evidence["ablations"] | evidence.get("references", {})
    rows = [["arm", metric_name(primary), "95 % interval", f"{TESTED} −", "p", "p (Holm)"]]
    for arm, own in evidence["arms"].items():
        value, test = own.get(primary, {}), tests.get(arm, {})
        rows.append(
            [
                arm,
                number(value.get("mean")),
                f"[{number(value.get('low'))}, {number(value.get('high'))}]",
                *_test_cells(test),
            ]
        )
    return _markdown_table(rows)


def _hard_queries_table(hard: Mapping[str, Any]) -> str:
    head = [f"the {hard['queries']} hardest of {hard['of']} queries", "mean", f"{TESTED} −"]
    rows = [[*head, "p", "p (Holm)"]]
    for arm, mean in hard["arms"].items():
        rows.append([arm, number(mean), *_test_cells(hard["tests"].get(arm, {}))])
    return _markdown_table(rows)


def _beside_s_table(evidence: Mapping[str, Any]) -> str:
    together, primary = evidence["beside_s"], evidence["primary_metric"]
    others = [metric for metric in together["arms"].get("cosine", {}) if metric != primary]
    head = ["S and R together", metric_name(primary), "95 % interval", "− S alone", "p", "p (Holm)"]
    rows = [[*head, *map(metric_name, others)]]
    for arm, metrics in together["arms"].items():
        value, test = metrics[primary], together["tests"].get(arm, {})
        rows.append(
            [
                "S alone" if arm == "cosine" else arm,
                number(value["mean"]),
                f"[{number(value['low'])}, {number(value['high'])}]",
                *_test_cells(test),
                *(number(metrics[metric]["mean"]) for metric in others),
            ]
        )
    return _markdown_table(rows)


def _test_cells(test: Mapping[str, Any]) -> list[str]:
    """Return difference, p and p after Holm; "–" where there is nothing to compare."""
    return [
        signed(test.get("difference")),
        number(test.get("p")),
        number(test.get("p_holm")),
    ]


def _other_metrics_table(evidence: Mapping[str, Any]) -> str:
    arms = evidence["arms"]
    metrics = dict.fromkeys(metric for own in arms.values() for metric in own)
    others = [metric for metric in metrics if metric != evidence["primary_metric"]]
    rows = [["arm", *map(metric_name, others)]]
    for arm, own in arms.items():
        rows.append([arm, *(number(own.get(metric, {}).get("mean")) for metric in others)])
    return _markdown_table(rows)


def _markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """Return rows, of which the first is the head, with all columns but the first at the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    padded = [[row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])] for row in rows]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join(f"| {' | '.join(row)} |" for row in [padded[0], rule, *padded[1:]])
