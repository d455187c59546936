"""Readers that all end in one type: products, queries and graded judgements in splits."""

from .dataset import RelevanceDataset, document_text, load_relevance_dataset, prompt_text
from .streaming import files_fingerprint, stream_prompts

__all__ = [
    "RelevanceDataset",
    "document_text",
    "files_fingerprint",
    "load_relevance_dataset",
    "prompt_text",
    "stream_prompts",
]
