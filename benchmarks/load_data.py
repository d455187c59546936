"""Load WANDS at full size (synthetic), split its queries, mine a negative a relevant pair."""

from environments import PROJECT
from measure import arguments, memory, tell

UNIT = "data sets"
OURS = "agr_trl"
CONTESTANTS = {OURS: PROJECT, "pandas by hand and rank-bm25": "rank_bm25"}
GOALS = dict.fromkeys(list(CONTESTANTS)[1:], 5.0)
SIZES = {"queries": 480}
QUICK = {"queries": 480}


def agr_trl():
    """Return a function from a folder to the number of negatives that the project mines."""
    from agr_trl.config import RetrieverArguments
    from agr_trl.data import load_relevance_dataset
    from agr_trl.search import BM25Index
    from agr_trl.training_pairs import gold_pairs

    def mine(folder) -> int:
        dataset = load_relevance_dataset("wands", folder, relevant_grade=2)
        args = RetrieverArguments(hard_negatives=1, random_negatives=0)
        pairs = gold_pairs(dataset, BM25Index(dataset.documents), args, None, 0)
        return int((pairs["source"] == "gold_hard").sum())

    return mine


def by_hand():
    """Return one that does it by pandas and rank-bm25, below half of the positive's BM25 score."""
    import numpy as np
    import pandas as pd
    from rank_bm25 import BM25Okapi

    def mine(folder) -> int:
        product = pd.read_csv(folder / "product.csv", sep="\t").fillna("")
        query = pd.read_csv(folder / "query.csv", sep="\t")
        label = pd.read_csv(folder / "label.csv", sep="\t")
        documents = (product["product_name"] + " " + product["product_description"]).tolist()
        index = BM25Okapi([document.lower().split() for document in documents])
        rng = np.random.default_rng(0)
        train = query.sample(frac=0.6, random_state=0)  # as ours: a fifth each for dev and test
        place = {product_id: i for i, product_id in enumerate(product["product_id"])}
        found = 0
        for row in train.itertuples():
            judged = label[label["query_id"] == row.query_id]
            relevant = {place[i] for i in judged.loc[judged["label"] != "Irrelevant", "product_id"]}
            scores = index.get_scores(row.query.lower().split())
            top = np.argsort(-scores)[:50]
            for product_id in judged.loc[judged["label"] == "Exact", "product_id"]:
                limit = scores[place[product_id]] / 2
                fit = [i for i in top if i not in relevant and 0 < scores[i] <= limit]
                if fit:
                    rng.choice(fit)
                    found += 1
        return found

    return mine


if __name__ == "__main__":
    import time

    name, inputs, sizes = arguments()
    work = agr_trl() if name == OURS else by_hand()  # which imports: not part of the work
    libraries = memory("VmRSS")
    began = time.perf_counter()
    found = work(inputs / f"wands_{sizes['queries']}")
    tell(1, [time.perf_counter() - began], negatives=found, libraries_mib=libraries)
