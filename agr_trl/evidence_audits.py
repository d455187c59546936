"""What the arms of a comparison wrote, how its rounds went, and whom people side with."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import expit
from scipy.stats import rankdata

from agr_trl.acceptance import distinct_n, query_statistics
from agr_trl.evidence_parts import TESTED, Part
from agr_trl.significance import defined

START = "warm_up_generator"  # the generator that the trained ones begin from
EXAMPLES = 30
EXAMPLES_PER_QUERY = 2
DISAGREEMENT = 1 / 3  # of ranks inside a fold, each in [0, 1]
ALARM_CHANGE = 0.01  # in the mean of S or of the second judge, each in [0, 1]
VARIETY_SAMPLE = 100  # queries a fold: the more there are, the fewer of their words are distinct


def rounds_of(parts: Sequence[Part], metric: str) -> list[dict[str, Any]]:
    """Return each round's mean dev metric over seeds and folds, and how often it was kept."""
    rounds: dict[int, list[Mapping[str, Any]]] = {}
    for part in parts:
        for this in part.result["rounds"]:
            rounds.setdefault(this["round"], []).append(this)
    return [
        {
            "round": index,
            "dev": _mean([this["dev"].get(metric) for this in rounds[index]]),
            "kept": float(np.mean([this["kept"] for this in rounds[index]])),
        }
        for index in sorted(rounds)
    ]


def audit_of(parts: Sequence[Part]) -> dict[str, Any]:
    """Return counts of what an arm wrote, and means over its accepted queries.

    But for distinct-n, which is of VARIETY_SAMPLE of them in each fold: it falls with their number.
    """
    frames = [part.queries for part in parts if part.queries is not None]
    written = pd.concat(frames, ignore_index=True)
    is_accepted = written["accepted"].astype(bool)
    judged_by = ["probability", "relevance", "second_judge"]
    rows: list[dict[str, float]] = []
    for frame in frames:
        accepted = frame[frame["accepted"].astype(bool)]
        if len(accepted):
            texts = accepted["query"].tolist(), accepted["document"].tolist()
            few = accepted["query"].sample(min(VARIETY_SAMPLE, len(accepted)), random_state=0)
            variety = {f"distinct_{n}": distinct_n(few.tolist(), n) for n in (1, 2)}
            rows.append(query_statistics(*texts) | variety | accepted[judged_by].mean().to_dict())
    names = ["copy_rate", "distinct_1", "distinct_2", "query_words", *judged_by]
    audit: dict[str, Any] = {
        "written": len(written),
        "accepted": int(is_accepted.sum()),
        "acceptance_rate": float(is_accepted.mean()) if len(written) else None,
        "reasons": written.loc[~is_accepted, "reason"].value_counts().to_dict(),
    }
    audit |= {name: _mean([row[name] for row in rows]) for name in names}
    audit["mean_words"] = audit.pop("query_words")
    shares = [
        (this["queries"]["truly_relevant_share"], this["queries"]["accepted"])
        for part in parts
        for this in part.result["rounds"]
        if this["round"] and this["queries"].get("truly_relevant_share") is not None
    ]
    if shares:
        share, accepted_queries = np.array(shares).T
        audit["truly_relevant_share"] = float(np.average(share, weights=accepted_queries))
    return audit


def watched(audits: Mapping[str, Mapping[str, Any]]) -> dict[str, list[float]]:
    """Return S of the start and of each arm that can raise an alarm, then the second judge's."""
    start = audits.get(START, {})
    numbers = {
        arm: [own.get(name) for name in ("relevance", "second_judge") for own in (start, audit)]
        for arm, audit in audits.items()
        if arm not in (START, "random_crops")
    }
    known = {arm: [one for one in own if one is not None] for arm, own in numbers.items()}
    return {arm: own for arm, own in known.items() if len(own) == len(numbers[arm])}


def alarms(audits: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return a sentence for each arm that pleases S better and a judge it never met less.

    Compared with the generator that it began from, so crops are not asked: S that rises while the
    second judge falls says that S is cheated, not that the queries got better.
    """
    sentences = []
    for arm, (s_before, s_after, judge_before, judge_after) in watched(audits).items():
        if s_after - s_before > ALARM_CHANGE and judge_before - judge_after > ALARM_CHANGE:
            sentences.append(
                f"{arm}: S of the accepted queries rises from {s_before:.3f} ({START}) to "
                f"{s_after:.3f}, but the second judge's score falls from {judge_before:.3f} to "
                f"{judge_after:.3f}"
            )
    return sentences


def disagreement(parts: Sequence[Part], cosine: Sequence[Part]) -> dict[str, Any]:
    """Return what people say of the judged pairs on which S and the attacked retriever differ.

    An attack looks for such pairs and S labels them, so what it can teach hangs on who is right.
    They differ where their ranks inside the fold, from 0 to 1, are more than DISAGREEMENT apart.
    `pairs` and `share` count these over all seeds; `relevant_by_s` and `relevant_by_retriever` are
    the shares of truly relevant ones among those that S, or the retriever, ranks higher; `s_right`
    is the share of all of them in which people side with S.
    """
    frames = []
    for part, own in zip(parts, cosine, strict=True):
        judged = part.pairs[part.pairs["judged"]].sort_values(["query_id", "product_id"])
        by_s = own.pairs[own.pairs["judged"]].sort_values(["query_id", "product_id"])
        ranks = [rankdata(scores) / len(judged) for scores in (by_s["retriever"], judged["before"])]
        frames.append(
            pd.DataFrame({"gap": ranks[0] - ranks[1], "relevant": judged["label"] >= 0.5})
        )
    table = pd.concat(frames, ignore_index=True)
    differ = table[table["gap"].abs() > DISAGREEMENT]
    s_is_higher = differ["gap"] > 0
    shares = {
        "relevant_by_s": differ.loc[s_is_higher, "relevant"].mean(),
        "relevant_by_retriever": differ.loc[~s_is_higher, "relevant"].mean(),
        "s_right": (s_is_higher == differ["relevant"]).mean(),
    }
    counts = {"pairs": len(differ), "share": len(differ) / len(table)}
    return counts | {name: defined(share) for name, share in shares.items()}


def examples_of(parts: Sequence[Part]) -> list[dict[str, Any]]:
    """Return judged pairs that the supervised start gets wrong and the tested arm right.

    By the log-odds averaged over seeds; largest change of the probability first, and of one query
    at most EXAMPLES_PER_QUERY, so that the list shows more than one mistake.
    """
    pairs = pd.concat([part.pairs[part.pairs["judged"]] for part in parts])
    texts = {"query": "first", "document": "first", "label": "first"}
    log_odds = {"before": "mean", "retriever": "mean"}
    rows = pairs.groupby(["query_id", "product_id"], sort=False).agg(texts | log_odds)
    rows = rows.assign(before=expit(rows["before"]), after=expit(rows["retriever"]))
    is_relevant = rows["label"] >= 0.5
    mended = rows[
        ((rows["before"] >= 0.5) != is_relevant) & ((rows["after"] >= 0.5) == is_relevant)
    ]
    moved = (mended["after"] - mended["before"]).abs().round(9)
    order = moved.sort_values(ascending=False, kind="stable").index
    chosen = mended.loc[order].groupby("query_id", sort=False).head(EXAMPLES_PER_QUERY)
    columns = ["query", "document", "label", "before", "after"]
    records: list[dict[str, Any]] = chosen.head(EXAMPLES)[columns].to_dict("records")
    return [record | {"arm": TESTED} for record in records]


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None and value == value]
    return float(np.mean(known)) if known else None
