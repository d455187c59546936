"""The run folder of a comparison of arms, read and checked: one part for each arm, fold and seed.

What `arms` has left of a part:

    <run>/seed_00/fold_0/<arm>/held_out.parquet   scored pairs that the arm's model never saw
    <run>/seed_00/fold_0/<arm>/result.json        blend weight, rounds, minutes
    <run>/seed_00/fold_0/<arm>/queries.parquet    what the arm wrote (not for `supervised`)
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from agr_trl.errors import UserError
from agr_trl.files import read_json

logger = logging.getLogger(__name__)

TESTED = "adversarial"
SAME_LOG_ODDS = 0.01  # up to which two scores are one model's on one machine


class Part(NamedTuple):
    """One arm in one fold of one seed; `seed` is a position among the seeds."""

    seed: int
    pairs: pd.DataFrame
    result: Mapping[str, Any]
    queries: pd.DataFrame | None


def seed_folder(folder: Path, seed: int) -> Path:
    """Return where a seed has its folds."""
    return folder / f"seed_{seed:02d}"


def fold_folder(folder: Path, seed: int, fold: int) -> Path:
    """Return where a seed's fold has its arms."""
    return seed_folder(folder, seed) / f"fold_{fold}"


def load_parts(
    folder: Path, arms: Sequence[str], seeds: Sequence[int], folds: int
) -> dict[str, list[Part]]:
    """Return the parts of each row of the comparison: REFERENCES, arms, ablations."""
    if TESTED not in arms:
        raise UserError(f"`arms` is {', '.join(arms)}; it must have {TESTED}")
    if not seeds or folds < 1:
        raise UserError(f"`seeds` is {list(seeds)} and `folds` {folds}; give one of each or more")
    places = [
        (position, str(fold_folder(Path(), seed, fold)))
        for position, seed in enumerate(seeds)
        for fold in range(folds)
    ]
    rows = ("cosine", *arms)
    missing = [
        f"{place}/{arm}/{name}"
        for _, place in places
        for arm in rows
        for name in _missing_files(folder / place / arm)
    ]
    if missing:
        more = f" and {len(missing) - 3} more files" if len(missing) > 3 else ""
        raise UserError(
            f"`{folder}` lacks {', '.join(missing[:3])}{more}; run the same comparison again, it "
            "goes on from there"
        )
    parts = {
        arm: [_read_part(folder / place / arm, position) for position, place in places]
        for arm in rows
    }
    _check_same_queries(parts, places)
    _warn_of_other_starts(parts, places)
    references = {
        "bm25": [_scored_by(part, "bm25", None) for part in parts[TESTED]],
        "cosine": parts["cosine"],
        "round_0": [
            _scored_by(part, "before", part.result["rounds"][0]["dev"].get("blend_weight"))
            for part in parts[TESTED]
        ],
    }
    return references | parts


def _missing_files(folder: Path) -> list[str]:
    """Return which files an arm's folder lacks; an arm that wrote no query has none of them."""
    result = folder / "result.json"
    wrote = result.is_file() and any(this["queries"] for this in read_json(result)["rounds"])
    needed = ["held_out.parquet", "result.json"] + ["queries.parquet"] * wrote
    return [name for name in needed if not (folder / name).is_file()]


def _scored_by(part: Part, column: str, blend_weight: float | None) -> Part:
    """Return a part as if the scores in another of its columns were the retriever's."""
    pairs = part.pairs.assign(retriever=part.pairs[column])
    return part._replace(pairs=pairs, result={**part.result, "blend_weight": blend_weight})


def _read_part(folder: Path, position: int) -> Part:
    queries = folder / "queries.parquet"
    return Part(
        position,
        pd.read_parquet(folder / "held_out.parquet"),
        read_json(folder / "result.json"),
        pd.read_parquet(queries) if queries.is_file() else None,
    )


def _check_same_queries(parts: Mapping[str, list[Part]], places: Sequence[tuple[int, str]]) -> None:
    """Refuse arms that were not scored on the same pairs, and seeds that miss or repeat a query."""
    reference = [_judged_keys(part) for part in parts[TESTED]]
    for arm, own in parts.items():
        for part, keys, (_, place) in zip(own, reference, places, strict=True):
            if _judged_keys(part) != keys:
                raise UserError(f"{place}/{arm} has other judged pairs than {TESTED}; remove both")
    by_seed: dict[int, list[str]] = {}
    for part in parts[TESTED]:
        by_seed.setdefault(part.seed, []).extend(judged_ids(part))
    if any(sorted(queries) != sorted(set(by_seed[0])) for queries in by_seed.values()):
        raise UserError("a seed lacks a judged query of another, or has one in two of its folds")


def _warn_of_other_starts(
    parts: Mapping[str, list[Part]], places: Sequence[tuple[int, str]]
) -> None:
    """Say which arms did not start from the R of round 0 that the tested arm started from.

    A fold's models are removed when its arms have ended, so an arm that is added later trains round
    0 anew, and on another machine that gives another R.
    """
    others = [
        f"{place}/{arm}"
        for arm, own in parts.items()
        for part, tested, (_, place) in zip(own, parts[TESTED], places, strict=True)
        if "before" in part.pairs and _start_differs(part, tested)
    ]
    if others:
        logger.warning(
            "%d arms of a fold started from another retriever than %s, such as %s; their "
            "differences hold its chance too. Remove these folds and run them again on one machine",
            len(others),
            TESTED,
            others[0],
        )


def _start_differs(part: Part, tested: Part) -> bool:
    order = ["query_id", "product_id"]
    own, other = (each.pairs.sort_values(order)["before"].to_numpy() for each in (part, tested))
    return len(own) != len(other) or not np.allclose(own, other, rtol=0, atol=SAME_LOG_ODDS)


def _judged_keys(part: Part) -> list[tuple[str, str]]:
    judged = part.pairs[part.pairs["judged"]]
    return sorted(zip(judged["query_id"], judged["product_id"], strict=True))


def judged_ids(part: Part) -> list[str]:
    queries: list[str] = part.pairs.loc[part.pairs["judged"], "query_id"].unique().tolist()
    return queries
