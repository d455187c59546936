"""Train the retriever, MiniLM-L6, one epoch with binary cross-entropy in batches of 32."""

import tempfile

from environments import PROJECT
from measure import arguments, read, tell

UNIT = "pairs"
OURS = "agr_trl"
CONTESTANTS = {OURS: PROJECT, "sentence-transformers CrossEncoderTrainer": "sentence_transformers"}
GOALS = dict.fromkeys(list(CONTESTANTS)[1:], 1.2)
SIZES = {"pairs": 1_024}
QUICK = {"pairs": 512}
SETTINGS = {
    "per_device_train_batch_size": 32,
    "num_train_epochs": 1,
    "learning_rate": 1e-4,
    "warmup_steps": 0.1,
    "report_to": "none",
    "save_strategy": "no",
    "disable_tqdm": True,
    "dataloader_pin_memory": False,
    "seed": 0,
}


def agr_trl(model: str, train: list, folder: str):
    """Return seconds of the training and the function that scores."""
    import pandas as pd
    from transformers import TrainingArguments

    from agr_trl import Retriever
    from agr_trl.retriever import retriever_trainer

    retriever = Retriever.from_pretrained(model)
    pairs = pd.DataFrame(train, columns=["query", "document", "label"])
    grouped = {"train_sampling_strategy": "group_by_length"}
    args = TrainingArguments(folder, eval_strategy="no", **SETTINGS, **grouped)
    trainer = retriever_trainer(retriever, args, pairs, pairs[:1], lambda _: {})
    return trainer.train().metrics["train_runtime"], retriever.score


def sentence_transformers(model: str, train: list, folder: str):
    """Return seconds of the training and the function that scores."""
    import torch
    from datasets import Dataset
    from sentence_transformers import CrossEncoder
    from sentence_transformers.cross_encoder import (
        CrossEncoderTrainer,
        CrossEncoderTrainingArguments,
    )
    from sentence_transformers.cross_encoder.losses import BinaryCrossEntropyLoss

    encoder = CrossEncoder(model, max_length=160)
    columns = dict(zip(("query", "document", "label"), zip(*train, strict=True), strict=True))
    trainer = CrossEncoderTrainer(
        model=encoder,
        args=CrossEncoderTrainingArguments(folder, **SETTINGS),
        train_dataset=Dataset.from_dict({name: list(rows) for name, rows in columns.items()}),
        loss=BinaryCrossEntropyLoss(encoder),
    )
    seconds = trainer.train().metrics["train_runtime"]
    plain = torch.nn.Identity()
    return seconds, lambda queries, documents: encoder.predict(
        list(zip(queries, documents, strict=True)), activation_fn=plain
    )


def share_in_order(scores, labels) -> float:
    """Return the share of (relevant, irrelevant) pairs that the scores put in order: ROC-AUC."""
    relevant = [s for s, label in zip(scores, labels, strict=True) if label]
    others = [s for s, label in zip(scores, labels, strict=True) if not label]
    return sum(a > b for a in relevant for b in others) / (len(relevant) * len(others))


if __name__ == "__main__":
    name, inputs, sizes = arguments()
    pairs = read(inputs, "pairs")
    train, dev = pairs[: sizes["pairs"]], pairs[-256:]
    work = agr_trl if name == OURS else sentence_transformers
    with tempfile.TemporaryDirectory() as folder:
        seconds, score = work(str(inputs / "retriever"), train, folder)
    queries, documents, labels = (list(column) for column in zip(*dev, strict=True))
    quality = share_in_order(score(queries, documents), labels)
    tell(len(train), [seconds], dev_roc_auc=quality)
