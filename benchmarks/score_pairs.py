"""Score pairs of mixed lengths with the retriever, MiniLM-L6."""

from environments import PROJECT
from measure import arguments, read, tell, timed

UNIT = "pairs"
OURS = "agr_trl"
CONTESTANTS = {
    OURS: PROJECT,
    "sentence-transformers CrossEncoder.predict": "sentence_transformers",
    "transformers pipeline": "sentence_transformers",
}
GOALS = dict.fromkeys(list(CONTESTANTS)[1:], 1.3)
TOLERANCE = 1e-4  # of the first scores
SIZES = {"pairs": 1_024, "repeats": 2}
QUICK = {"pairs": 256, "repeats": 1}


def scorer_of(name: str, model: str):
    """Return a function from pairs to log-odds."""
    if name == OURS:
        from agr_trl import Retriever

        retriever = Retriever.from_pretrained(model)
        return lambda queries, documents: retriever.score(queries, documents)
    if name.startswith("sentence"):
        import torch
        from sentence_transformers import CrossEncoder

        encoder = CrossEncoder(model, max_length=160)
        plain = torch.nn.Identity()
        return lambda queries, documents: encoder.predict(
            list(zip(queries, documents, strict=True)), activation_fn=plain
        )
    from transformers import pipeline

    classify = pipeline("text-classification", model=model, batch_size=32, max_length=160)

    def score(queries, documents):
        pairs = [{"text": q, "text_pair": d} for q, d in zip(queries, documents, strict=True)]
        found = classify(pairs, function_to_apply="none", truncation=True)
        return [row["score"] for row in found]

    return score


if __name__ == "__main__":
    name, inputs, sizes = arguments()
    queries, documents, _ = zip(*read(inputs, "pairs")[: sizes["pairs"]], strict=True)
    queries, documents = list(queries), list(documents)
    scorer = scorer_of(name, str(inputs / "retriever"))
    seconds = timed(lambda: scorer(queries, documents), sizes["repeats"])
    tell(len(queries), seconds, scorer(queries[:32], documents[:32]))
