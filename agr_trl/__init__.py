"""Train a product-search relevance model and a query generator against each other."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agr_trl.data import load_relevance_dataset
    from agr_trl.retriever import Retriever
    from agr_trl.seq2seq_trainer import Seq2SeqGRPOTrainer, Seq2SeqRLOOTrainer

__all__ = ["Retriever", "Seq2SeqGRPOTrainer", "Seq2SeqRLOOTrainer", "load_relevance_dataset"]

_HOME = {
    "Retriever": "agr_trl.retriever",
    "Seq2SeqGRPOTrainer": "agr_trl.seq2seq_trainer",
    "Seq2SeqRLOOTrainer": "agr_trl.seq2seq_trainer",
    "load_relevance_dataset": "agr_trl.data",
}


def __getattr__(name: str) -> Any:
    """Import a public name at its first use: reading data should not cost the import of TRL."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOME[name]), name)
