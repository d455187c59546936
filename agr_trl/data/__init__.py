"""Readers that all end in one type: products, queries and graded judgements in splits."""

from .dataset import RelevanceDataset, document_text, load_relevance_dataset, prompt_text

__all__ = ["RelevanceDataset", "document_text", "load_relevance_dataset", "prompt_text"]
