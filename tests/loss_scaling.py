"""One optimiser step of both supervised trainers; test_losses.py compares how it is split up."""

from pathlib import Path
from typing import Any

import pandas as pd
import torch
from toy_shop import DOCUMENTS, PROMPTS, build_generator, build_retriever, training_options
from transformers import Seq2SeqTrainingArguments, Trainer, TrainingArguments

from agr_trl.config import WarmUpArguments
from agr_trl.generator import warm_up_trainer
from agr_trl.retriever import retriever_trainer
from agr_trl.runtime import train_and_evaluate

# Eight rows; queries of one length, since warm-up batches weigh equally whatever tokens they hold.
QUERIES = ["red chair", "blue chair", "desk lamp", "floor lamp"] * 2


def train_retriever(folder: Path, batch_size: int, accumulation: int) -> dict[str, Any]:
    retriever = build_retriever()
    for part in retriever.model.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.0
    pairs = pd.DataFrame(
        {
            "query": QUERIES,
            "document": (DOCUMENTS * 2)[:8],
            "label": [1.0, 0.0, 0.3, 1.0, 0.0, 0.9, 0.0, 1.0],
        }
    )
    args = TrainingArguments(**_options(folder, batch_size, accumulation))
    return _step(retriever_trainer(retriever, args, pairs, pairs, lambda prediction: {}))


def train_generator(folder: Path, batch_size: int, accumulation: int) -> dict[str, Any]:
    model, tokenizer = build_generator()
    same_length = [q for q in QUERIES if len(tokenizer(q)["input_ids"]) == 3] * 8
    pairs = pd.DataFrame({"prompt": (PROMPTS * 2)[:8], "query": same_length[:8]})
    args = Seq2SeqTrainingArguments(**_options(folder, batch_size, accumulation))
    return _step(warm_up_trainer(model, tokenizer, args, WarmUpArguments(), pairs, pairs))


def _options(folder: Path, batch_size: int, accumulation: int) -> dict[str, Any]:
    return training_options(
        folder,
        per_device_train_batch_size=batch_size,
        per_device_eval_batch_size=4,
        gradient_accumulation_steps=accumulation,
        max_steps=1,
        learning_rate=0.1,
        lr_scheduler_type="constant",
        optim="sgd",
    )


def _step(trainer: Trainer) -> dict[str, Any]:
    """Evaluate, take one plain gradient step, and return what may not depend on the split."""
    before = _sums(trainer.model)
    eval_loss = train_and_evaluate(trainer)[0]["eval_loss"]
    log = next(entry for entry in trainer.state.log_history if "grad_norm" in entry)
    return {
        "world_size": trainer.accelerator.num_processes,
        "eval_loss": eval_loss,
        "loss": log["loss"],
        "grad_norm": log["grad_norm"],
        "before": before,
        "weights": _sums(trainer.model),
    }


def _sums(model: torch.nn.Module) -> list[float]:
    return [value.double().sum().item() for value in model.state_dict().values()]
