"""Load what was published by its name and write what it gives; run the snippets of the cards.

Arguments: the repositories' common name, a file for the answers. The environment names the Hub.
"""

import contextlib
import io
import json
import re
import sys
from pathlib import Path

import torch
from huggingface_hub import DatasetCard, HfApi, ModelCard, hf_hub_download, snapshot_download
from peft import AutoPeftModelForSeq2SeqLM, PeftModel
from sentence_transformers import CrossEncoder
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    pipeline,
)

from agr_trl import Retriever

QUERIES = ["red chair", "blue lamp"]
DOCUMENTS = ["red oak chair", "green floor lamp"]


def main(name: str, output: Path) -> None:
    retriever, generator, queries = (
        f"{name}-{kind}" for kind in ("retriever", "generator", "queries")
    )
    api = HfApi()
    answers = {
        "files": {
            retriever: api.list_repo_files(retriever),
            generator: api.list_repo_files(generator),
            queries: api.list_repo_files(queries, repo_type="dataset"),
        },
        "tags": {
            repo: sorted(tag.name for tag in api.list_repo_refs(repo).tags)
            for repo in (retriever, generator)
        },
        "folders": {repo: snapshot_download(repo) for repo in (retriever, generator)},
        "round_0": snapshot_download(retriever, revision="round-0"),
        **scores(retriever),
        "logits": logits(generator),
    }
    cards = [ModelCard.load(retriever), ModelCard.load(generator), DatasetCard.load(queries)]
    answers["snippets"] = [printed(card.content) for card in cards]
    for kind, repo in (("retriever", retriever), ("generator", generator)):
        first = ModelCard.load(hf_hub_download(repo, "README.md", revision="round-0"))
        answers[f"first_{kind}"] = {"card": first.content, "prints": printed(first.content)}
    answers["eval_results"] = [
        [result.metric_type, result.dataset_split, result.metric_value]
        for result in cards[0].data.eval_results
    ]
    output.write_text(json.dumps(answers))


def scores(name: str) -> dict[str, list[float]]:
    """Return the probabilities of two pairs by each library that loads the retriever."""
    pairs = list(zip(QUERIES, DOCUMENTS, strict=True))
    tokenizer = AutoTokenizer.from_pretrained(name)
    plain = AutoModelForSequenceClassification.from_pretrained(name)
    with torch.no_grad():
        logit = plain(**tokenizer(QUERIES, DOCUMENTS, padding=True, return_tensors="pt")).logits
    classify = pipeline("text-classification", model=name)
    found = classify([{"text": query, "text_pair": document} for query, document in pairs])
    return {
        "ours": Retriever.from_pretrained(name).score(QUERIES, DOCUMENTS).tolist(),
        "transformers": logit[:, 0].tolist(),
        "cross_encoder": CrossEncoder(name).predict(pairs).tolist(),
        "pipeline": [entry["score"] for entry in found],
    }


def logits(name: str) -> list[float]:
    """Return some logits of the generator, whose adapter PEFT loads with its base model."""
    model = AutoPeftModelForSeq2SeqLM.from_pretrained(name)
    assert isinstance(model, PeftModel)
    tokenizer = AutoTokenizer.from_pretrained(name)
    inputs = tokenizer("Title: red oak chair - Description: ", return_tensors="pt")
    with torch.no_grad():
        answer = model.eval()(**inputs, decoder_input_ids=torch.tensor([[0]]))
    return answer.logits[0, 0, :8].tolist()


def printed(card: str) -> str:
    """Run the Python blocks of a card and return what they print."""
    output = io.StringIO()
    for block in re.findall(r"^```python\n(.*?)^```", card, re.DOTALL | re.MULTILINE):
        with contextlib.redirect_stdout(output):
            exec(compile(block, "card", "exec"), {})
    return output.getvalue()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
