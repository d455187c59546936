"""Search a catalogue: BM25's best 100 products, ranked by MiniLM-L6."""

from environments import PROJECT
from measure import arguments, read, tell, timed

UNIT = "searches"
OURS = "agr_trl"
BFLOAT16 = "agr_trl, bfloat16 autocast"
PEER = "rank-bm25 and CrossEncoder"
CONTESTANTS = {OURS: PROJECT, BFLOAT16: PROJECT, PEER: "rank_bm25"}
GOALS = BFLOAT16_GOALS = {PEER: 2.0}
SIZES = {"queries": 32}
QUICK = {"queries": 8}
CANDIDATES = 100
BEST = 10


def searcher_of(name: str, model: str, texts: list[str]):
    """Return a function from a query to the positions of its best products."""
    if name != PEER:
        import pandas as pd

        from agr_trl import Retriever
        from agr_trl.data import RelevanceDataset
        from agr_trl.search import BM25Index, ProductSearch

        ids = [str(place) for place in range(len(texts))]
        products = pd.DataFrame({"product_id": ids, "title": texts, "description": ""})
        queries = pd.DataFrame({"query_id": [], "query": []})
        judgements = pd.DataFrame(
            {"query_id": [], "product_id": [], "grade": [], "label": [], "split": []}
        )
        dataset = RelevanceDataset(products, queries, judgements, True, 2)
        index = BM25Index(dataset.documents)
        retriever = Retriever.from_pretrained(model)
        retriever.bfloat16 = name == BFLOAT16
        search = ProductSearch(dataset, index, retriever.score)
        return lambda query: search.search(query, BEST, CANDIDATES)["product_id"].tolist()
    import numpy as np
    from rank_bm25 import BM25Okapi
    from sentence_transformers import CrossEncoder

    index = BM25Okapi([text.lower().split() for text in texts])
    encoder = CrossEncoder(model, max_length=160)

    def search(query):
        top = np.argsort(-index.get_scores(query.lower().split()))[:CANDIDATES]
        ranked = encoder.rank(query, [texts[place] for place in top], top_k=BEST)
        return [int(top[row["corpus_id"]]) for row in ranked]

    return search


if __name__ == "__main__":
    name, inputs, sizes = arguments()
    search = searcher_of(name, str(inputs / "retriever"), read(inputs, "catalogue")["texts"])
    queries = iter(read(inputs, "queries"))
    tell(1, timed(lambda: search(next(queries)), sizes["queries"]))
