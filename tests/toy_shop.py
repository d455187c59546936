"""A toy catalogue with judgements, and tiny models whose words come from it."""

from pathlib import Path
from typing import Any

import pandas as pd
import torch

from agr_trl.data import RelevanceDataset, document_text, prompt_text
from agr_trl.retriever import Retriever
from agr_trl.small_models import build_small_bert, build_small_t5

TITLES = {
    "p0": ("red wooden chair", "solid oak"),
    "p1": ("blue metal chair", ""),
    "p2": ("red desk lamp", "for reading"),
    "p3": ("green floor lamp", ""),
    "p4": ("oak dining table", "seats six"),
    "p5": ("glass coffee table 120cm", ""),
}
JUDGEMENTS = [
    ("q0", "p0", 2, "train"),
    ("q0", "p1", 1, "train"),
    ("q0", "p3", 0, "train"),
    ("q1", "p2", 2, "train"),
    ("q1", "p4", 0, "train"),
    ("q2", "p4", 2, "dev"),
    ("q2", "p0", 0, "dev"),
    ("q2", "p5", 1, "dev"),
    ("q2", "p3", 0, "dev"),
]
QUERIES = {"q0": "wooden chair", "q1": "reading lamp", "q2": "oak table"}
DOCUMENTS = [document_text(*texts) for texts in TITLES.values()]
PROMPTS = [prompt_text(*texts) for texts in TITLES.values()]
WORDS = [*DOCUMENTS, *PROMPTS, *QUERIES.values()]


def build_dataset() -> RelevanceDataset:
    judgements = pd.DataFrame(JUDGEMENTS, columns=["query_id", "product_id", "grade", "split"])
    judgements["label"] = (judgements["grade"] >= 1).astype(float)
    products = pd.DataFrame(
        [(key, *texts) for key, texts in TITLES.items()],
        columns=["product_id", "title", "description"],
    )
    queries = pd.DataFrame(list(QUERIES.items()), columns=["query_id", "query"])
    return RelevanceDataset(products, queries, judgements, has_ids=True, max_grade=2)


def build_retriever(seed: int = 0, width: int = 32) -> Retriever:
    """Return a BERT of 2 layers with large random weights, so that scores differ."""
    torch.manual_seed(seed)
    model, tokenizer = build_small_bert(
        WORDS, width=width, layers=2, max_tokens=32, vocabulary_size=200
    )
    torch.nn.init.normal_(model.classifier.weight)
    return Retriever(model, tokenizer, 32)


def build_generator(seed: int = 0) -> tuple[Any, Any]:
    """Return a T5 of one layer a side and its tokenizer."""
    torch.manual_seed(seed)
    return build_small_t5(WORDS, width=32, layers=1, vocabulary_size=120)


def save_generator(path: Path) -> Path:
    """Write such a T5 and return its folder."""
    for part in build_generator():
        part.save_pretrained(path)
    return path


def weights_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Copy the state of a model."""
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def training_options(output_dir: Path, **options: Any) -> dict[str, Any]:
    """Return Trainer arguments for a quiet run of some steps on a CPU."""
    return {
        "output_dir": str(output_dir),
        "use_cpu": True,
        "report_to": "none",
        "save_strategy": "no",
        "logging_steps": 1,
        "disable_tqdm": True,
        **options,
    }


class WordOverlap:
    """S in [0, 1]: the share of a query's words that the document has."""

    def score(self, queries: Any, documents: Any) -> Any:
        pairs = [(set(q.split()), set(d.split())) for q, d in zip(queries, documents, strict=True)]
        return torch.tensor([len(q & d) / max(1, len(q)) for q, d in pairs]).numpy()

    def weakest_word(self, queries: Any, documents: Any) -> Any:
        return (self.score(queries, documents) == 1).astype("float32")  # the document has them all
