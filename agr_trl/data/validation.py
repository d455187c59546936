"""Describe a data set before anything is trained on it: what it holds and what looks wrong."""

import logging
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pandas as pd

from agr_trl.data.dataset import RelevanceDataset
from agr_trl.data.esci import MARKUP
from agr_trl.data.splits import SPLITS, query_groups

Facts = dict[str, Any]

HTML = re.compile(rf"{MARKUP.pattern}|&(?:#\d+|#x[0-9a-f]+|[a-z]+\d*);", MARKUP.flags)
FEW_QUERIES = 30  # below it the mean of a metric moves by several points with a single query


@contextmanager
def readers_warnings() -> Iterator[list[str]]:
    """Collect what the readers warn of in the body: what they left out or found odd."""
    messages: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            # What load_relevance_dataset itself warns of, variants, is among the problems.
            if record.name != "agr_trl.data.dataset":
                messages.append(record.getMessage())

    source, collector = logging.getLogger("agr_trl.data"), Collector(logging.WARNING)
    source.addHandler(collector)
    try:
        yield messages
    finally:
        source.removeHandler(collector)


def describe_dataset(
    dataset: RelevanceDataset,
    relevant_grade: int = 1,
    max_pair_tokens: int = 256,
    max_prompt_tokens: int = 128,
    examples: int = 3,
) -> Facts:
    """Return what the data set holds, as JSON can hold it; `problems` says what looks wrong.

    A word is at least one token, so a text of more words than the token limits is cut for sure;
    how many more are cut only the tokenizer knows. Of the judgements those with a label of .5 or
    more are relevant.
    """
    facts: Facts = {
        "products": _describe_products(dataset),
        "queries": _describe_queries(dataset),
        "has_ids": dataset.has_ids,
        "relevant": _what_is_relevant(dataset, relevant_grade),
        "splits": {
            split: _describe_split(rows)
            for split in SPLITS
            if len(rows := dataset.judgements[dataset.judgements["split"] == split])
        },
        "lengths": _describe_lengths(dataset, max_pair_tokens, max_prompt_tokens),
        "variants_in_two_splits": _variants_in_two_splits(dataset),
        "judged_both_ways": _judged_both_ways(dataset),
    }
    facts["problems"] = _problems(facts)
    facts["examples"] = _examples(dataset, examples)
    return facts


def format_description(facts: Mapping[str, Any]) -> str:
    """Return the description as text for a terminal."""
    products, queries, lengths = facts["products"], facts["queries"], facts["lengths"]
    lines = [
        f"products   {products['count']:,}, {products['judged']:,} of them judged; "
        f"{products['without_description']:,} ({_share(products, 'without_description')}) without "
        "a description",
        f"queries    {queries['count']:,}, {queries['judged']:,} of them judged",
        f"relevant   {facts['relevant']}",
        "",
        _split_table(facts["splits"], "grades" if facts["has_ids"] else "labels"),
        "",
        f"words      query: median {lengths['query']['median']:g}, longest "
        f"{lengths['query']['longest']}; document: median {lengths['document']['median']:g}, "
        f"95 % up to {lengths['document']['percentile_95']:g}, longest "
        f"{lengths['document']['longest']}",
        "",
        *_listed("left out or odd:", facts.get("readers_warnings", [])),
        *_listed("what looks wrong:", facts["problems"] or ["nothing"]),
        "what the generator reads (prompts):",
        *(f"  {_shorten(prompt)}" for prompt in facts["examples"]["prompts"]),
        "",
        "what the retriever reads (query | document -> label):",
        *(
            f"  {pair['query']} | {_shorten(pair['document'])} -> {pair['label']:g}"
            for pair in facts["examples"]["pairs"]
        ),
    ]
    return "\n".join(lines)


def _describe_products(dataset: RelevanceDataset) -> Facts:
    products, documents = dataset.products, pd.Series(dataset.documents)
    judged = pd.Index(dataset.judgements["product_id"].unique())
    marks = [match for text in documents if (match := HTML.search(text))]
    return {
        "count": len(products),
        "judged": len(judged),
        "without_title": int((products["title"] == "").sum()),
        "without_description": int((products["description"] == "").sum()),
        **_describe_repeats(documents),
        "with_html": len(marks),
        "text_with_html": _around(marks[0]) if marks else None,
    }


def _describe_queries(dataset: RelevanceDataset) -> Facts:
    texts = dataset.queries["query"]
    return {
        "count": len(texts),
        "judged": dataset.judgements["query_id"].nunique(),
        **_describe_repeats(texts),
    }


def _describe_repeats(texts: pd.Series) -> Facts:
    repeats = texts[texts.str.casefold().duplicated()]
    return {
        "repeat_of_another_text": len(repeats),
        "repeated_text": None if repeats.empty else str(repeats.iloc[0])[:80],
    }


def _describe_split(rows: pd.DataFrame) -> Facts:
    relevant = rows["label"] >= 0.5
    has_relevant = relevant.groupby(rows["query_id"]).any()
    # Soft labels may all differ: to tenths.
    labels = rows["label"].round(1).value_counts().sort_index()
    grades = rows["grade"].value_counts().sort_index()
    return {
        "queries": len(has_relevant),
        "queries_without_relevant": int((~has_relevant).sum()),
        "judgements": len(rows),
        "relevant": int(relevant.sum()),
        "grades": {str(grade): int(number) for grade, number in grades.items()},
        "labels": {f"{label:g}": int(number) for label, number in labels.items()},
    }


def _what_is_relevant(dataset: RelevanceDataset, relevant_grade: int) -> str:
    if not dataset.has_ids:
        return "labels of .5 or more; there are no ids, so pairs are measured but no rankings"
    return f"grades of {relevant_grade} or more (they go from 0 to {dataset.max_grade})"


def _describe_lengths(
    dataset: RelevanceDataset, max_pair_tokens: int, max_prompt_tokens: int
) -> Facts:
    document, prompt, query = (
        pd.Series(texts).str.split().str.len()
        for texts in (dataset.documents, dataset.prompts()["prompt"], dataset.queries["query"])
    )
    return {
        name: {
            "median": float(words.median()),
            "percentile_95": float(words.quantile(0.95)),
            "longest": int(words.max()),
        }
        for name, words in (("query", query), ("document", document))
    } | {
        "max_pair_tokens": max_pair_tokens,
        "documents_cut": int((document > max_pair_tokens).sum()),
        "max_prompt_tokens": max_prompt_tokens,
        "prompts_cut": int((prompt > max_prompt_tokens).sum()),
    }


def _variants_in_two_splits(dataset: RelevanceDataset) -> list[dict[str, str]]:
    """Return split -> query of each group of variants that lies in more than one split."""
    judged = dataset.judgements[["query_id", "split"]].drop_duplicates()
    texts = dataset.queries.set_index("query_id")["query"]
    judged = judged.assign(query=judged["query_id"].map(texts))
    judged = judged.assign(group=query_groups(judged["query"].tolist()))
    judged = judged[judged.groupby("group")["split"].transform("nunique") > 1]
    return [
        dict(zip(rows["split"], rows["query"], strict=True))
        for _, rows in judged.groupby("group", sort=True)
    ]


def _judged_both_ways(dataset: RelevanceDataset) -> list[dict[str, str]]:
    """Return query and document of each pair of texts that is relevant and is not."""
    columns = {}
    for split in SPLITS:
        if (dataset.judgements["split"] == split).any():
            columns[split] = dataset.pairs(split)
    pairs = pd.concat(columns.values())
    pairs = pairs.assign(
        relevant=pairs["label"] >= 0.5,
        query_key=pairs["query"].str.casefold(),
        document_key=pairs["document"].str.casefold(),
    )
    keys = ["query_key", "document_key"]
    both = pairs[pairs.duplicated(keys, keep=False)]
    both = both[both.groupby(keys)["relevant"].transform("nunique") > 1]
    return both.drop_duplicates(keys)[["query", "document"]].to_dict("records")


def _problems(facts: Facts) -> list[str]:
    """Say in a sentence each what a person should look at."""
    products, queries, lengths = facts["products"], facts["queries"], facts["lengths"]
    variants, both = facts["variants_in_two_splits"], facts["judged_both_ways"]
    found = []
    if products["repeat_of_another_text"]:
        found.append(
            f"{products['repeat_of_another_text']:,} products have the text of another, such as "
            f"{products['repeated_text']!r}; no model can tell them apart"
        )
    if both:
        found.append(
            f"{len(both):,} pairs of the same texts are judged both relevant and not, such as "
            f"{both[0]['query']!r} with {both[0]['document'][:80]!r}"
        )
    if products["without_title"]:
        found.append(f"{products['without_title']:,} products have no title")
    if products["with_html"]:
        found.append(
            f"{products['with_html']:,} products have HTML in their text, such as "
            f"{products['text_with_html']!r}; the models read it as words"
        )
    if queries["repeat_of_another_text"]:
        found.append(
            f"{queries['repeat_of_another_text']:,} queries have the text of another, such as "
            f"{queries['repeated_text']!r}; give them one id"
        )
    if queries["judged"] < queries["count"]:
        found.append(f"{queries['count'] - queries['judged']:,} queries have no judgement: unused")
    if variants:
        found.append(
            f"{len(variants):,} queries are in two splits in another spelling, such as "
            f"{' and '.join(f'{text!r} ({split})' for split, text in variants[0].items())}; "
            "the later split then measures what was learned by heart"
        )
    for texts, limit in (("documents", "max_pair_tokens"), ("prompts", "max_prompt_tokens")):
        if cut := lengths[f"{texts}_cut"]:
            found.append(f"at least {cut:,} {texts} are cut at {limit} {lengths[limit]}")
    return found + _problems_of_splits(facts["splits"], facts["has_ids"])


def _problems_of_splits(splits: Mapping[str, Facts], has_ids: bool) -> list[str]:
    found = []
    if "train" not in splits:
        found.append("there is no train split; nothing to learn from")
    if "dev" not in splits:
        remedy = "; `--dev_fraction 0.2` takes it from train" if "train" in splits else ""
        found.append(f"there is no dev split; nothing to choose by{remedy}")
    for split, numbers in splits.items():
        usable = numbers["queries"] - numbers["queries_without_relevant"]
        if numbers["relevant"] in (0, numbers["judgements"]):
            kind = "relevant" if numbers["relevant"] else "not relevant"
            found.append(f"all {numbers['judgements']:,} judgements of {split} are {kind}")
        if has_ids and numbers["queries_without_relevant"]:
            found.append(
                f"{numbers['queries_without_relevant']:,} of {numbers['queries']:,} queries of "
                f"{split} have no relevant product; rankings leave them out"
            )
        if split != "train" and usable < FEW_QUERIES:
            found.append(
                f"{split} has {usable} queries with a relevant product; on fewer than "
                f"{FEW_QUERIES} a difference of some points is chance"
            )
    return found


def _examples(dataset: RelevanceDataset, number: int) -> Facts:
    """Return prompts from all over the catalogue, and pairs with both labels where there are."""
    prompts = dataset.prompts()["prompt"]
    places = sorted({round(i * (len(prompts) - 1) / max(number - 1, 1)) for i in range(number)})
    split = next(name for name in SPLITS if (dataset.judgements["split"] == name).any())
    pairs = dataset.pairs(split)
    relevant = pairs["label"] >= 0.5
    chosen = pd.concat([pairs[relevant].head(number - 1), pairs[~relevant], pairs[relevant]])
    columns = ["query", "document", "label", "grade"]
    return {
        "prompts": prompts.iloc[places].tolist(),
        "pairs": chosen.drop_duplicates(["query_id", "product_id"])[columns]
        .head(number)
        .to_dict("records"),
    }


def _split_table(splits: Mapping[str, Facts], values: str) -> str:
    rows = {
        split: {
            "queries": f"{numbers['queries']:,}",
            "without relevant": f"{numbers['queries_without_relevant']:,}",
            "judgements": f"{numbers['judgements']:,}",
            "relevant": f"{numbers['relevant'] / numbers['judgements']:.0%}",
            values: ", ".join(f"{value}: {n:,}" for value, n in numbers[values].items()),
        }
        for split, numbers in splits.items()
    }
    return pd.DataFrame.from_dict(rows, orient="index").to_string()


def _listed(title: str, items: Sequence[str]) -> list[str]:
    return [title, *(f"  - {item}" for item in items), ""] if items else []


def _share(facts: Facts, name: str) -> str:
    return f"{facts[name] / facts['count']:.0%}"


def _around(match: re.Match[str]) -> str:
    return match.string[max(0, match.start() - 30) : match.start() + 50]


def _shorten(text: str) -> str:
    return textwrap.shorten(text, 500, placeholder=" …")
