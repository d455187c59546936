"""Grade any query against the products of the demo shop, exactly."""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import cache, lru_cache
from typing import NamedTuple

from agr_trl.data.demo_words import IGNORED_WORDS, KINDS, SERIES, VALUES, WIDER, words_of
from agr_trl.data.splits import stem
from agr_trl.errors import UserError

Attributes = dict[str, list[str]]  # for each dimension, the values that a product's text states


class Constraint(NamedTuple):
    """What one phrase of a query asks for: some value of a dimension; no value can be enough."""

    dimension: str
    accepted: frozenset[str]


class DemoOracle:
    """Grade any query against the shop's products, exactly: 2 Exact, 1 Partial, 0 Irrelevant.

    A query is read as constraints (`parse_query`), of which the last kind of product before a
    "with", "for" or "in" is the head. Exact: every constraint holds. Partial: the head holds and,
    where something else is named, at least half of the rest. Irrelevant: all else. A word that
    the shop does not know is a constraint that no product meets; a query of nothing else has no
    grade (None). Only what title or description state counts.
    """

    def __init__(self, attributes: Mapping[str, Attributes]) -> None:
        self.attributes = attributes

    def grade(self, query: str, product_id: str) -> int | None:
        """Return the grade (0, 1 or 2), or None where the query names nothing the shop knows.

        Raises `UserError` for an unknown product.
        """
        if product_id not in self.attributes:
            raise UserError(f"the demo shop has no product {product_id!r}")
        reading = read_query(query)
        if reading is None:
            return None
        head, rest = reading
        attributes = self.attributes[product_id]
        if head is not None and not _holds(head, attributes):
            return 0
        held = sum(_holds(constraint, attributes) for constraint in rest)
        if held == len(rest):
            return 2
        return int(2 * held >= len(rest))

    def grade_many(self, queries: Sequence[str], product_ids: Sequence[str]) -> list[int | None]:
        """Grade aligned queries and products."""
        return [self.grade(*pair) for pair in zip(queries, product_ids, strict=True)]


@cache
def phrase_constraints() -> dict[tuple[str, ...], Constraint]:
    """Return what each phrase (a tuple of stems) asks for."""
    accepted: dict[tuple[str, str], set[str]] = defaultdict(set)
    for kind in KINDS:
        name = kind.names.split("|")[0]
        for phrase in f"{kind.names}|{kind.wider}".split("|"):
            accepted["kind", phrase].add(name)
    for dimension in VALUES:
        for value, phrases in words_of(dimension).items():
            for phrase in phrases:
                accepted[dimension, phrase].add(value)
        for phrase, values in WIDER.get(dimension, {}).items():
            accepted[dimension, phrase].update(values.split("|"))
    for name in SERIES:
        accepted["series", name].add(name)
    return {
        stems_of(phrase): Constraint(dimension, frozenset(values))
        for (dimension, phrase), values in accepted.items()
    }


@lru_cache(maxsize=10_000)
def parse_query(query: str) -> tuple[Constraint, ...]:
    """Read a query from left to right, the longest known phrase first.

    A number asks for that width. A word that the shop does not know asks for what no product has
    (dimension "unknown"); only function words ask for nothing.
    """
    known = phrase_constraints()
    longest = max(map(len, known))
    stems, constraints, start = stems_of(query), [], 0
    while start < len(stems):
        for length in range(min(longest, len(stems) - start), 0, -1):
            phrase = stems[start : start + length]
            if phrase in known:
                constraints.append(known[phrase])
                break
        else:
            length, word = 1, stems[start]
            if word.isdigit():
                constraints.append(Constraint("inches", frozenset([word])))
            elif word not in _ignored_stems():
                constraints.append(Constraint("unknown", frozenset()))
        start += length
    return tuple(constraints)


@lru_cache(maxsize=10_000)
def read_query(query: str) -> tuple[Constraint | None, tuple[Constraint, ...]] | None:
    """Split a query's constraints into its head and the rest; None where it names nothing known.

    The head is the last kind before "with", "for" or "in", else the last kind at all, if any.
    """
    constraints = parse_query(query)
    if all(constraint.dimension == "unknown" for constraint in constraints):
        return None
    start = re.split(r"\b(?:with|for|in)\b", query.lower())[0]
    for part in (start, query):
        places = [i for i, one in enumerate(parse_query(part)) if one.dimension == "kind"]
        if places:
            head = places[-1]
            return constraints[head], constraints[:head] + constraints[head + 1 :]
    return None, constraints


def _holds(constraint: Constraint, attributes: Attributes) -> bool:
    return not constraint.accepted.isdisjoint(attributes.get(constraint.dimension, ()))


@cache
def _ignored_stems() -> frozenset[str]:
    return frozenset(stem(word) for word in IGNORED_WORDS)


def stems_of(text: str) -> tuple[str, ...]:
    """Return the stems of a text's words, so that plurals match."""
    return tuple(stem(word) for word in re.findall(r"[a-z0-9]+", text.lower()))
