"""One rank of test_sharded_retriever.py: train, save and score. Started by torchrun.

accelerate shards parameters on accelerators alone. Told that these CPU processes are such, it does
over gloo what it does on GPUs.
"""

import json
import sys
from pathlib import Path

import pandas as pd
import torch
from accelerate import PartialState
from accelerate.utils import DistributedType, parse_flag_from_env
from torch import distributed
from toy_shop import DOCUMENTS, QUERIES, build_retriever, training_options
from transformers import TrainingArguments

from agr_trl.retriever import dev_metrics, retriever_trainer
from agr_trl.runtime import leave_process_group


def main() -> None:
    output, lora_rank = Path(sys.argv[1]), int(sys.argv[2])
    pairs = [(q, d, float(n % 2)) for q in QUERIES.values() for n, d in enumerate(DOCUMENTS)]
    pairs = pd.DataFrame(pairs, columns=["query", "document", "label"])
    retriever = build_retriever()
    args = TrainingArguments(
        **training_options(output / "checkpoints", max_steps=6, learning_rate=1e-3)
        | {"per_device_train_batch_size": 4, "eval_strategy": "steps", "eval_steps": 3}
        | {"save_strategy": "steps", "save_steps": 3, "load_best_model_at_end": True},
    )
    if parse_flag_from_env("ACCELERATE_USE_FSDP"):
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    metrics = dev_metrics(pairs, has_ids=False)
    trainer = retriever_trainer(retriever, args, pairs, pairs, metrics, lora_rank=lora_rank)
    before = retriever.score(pairs["query"].tolist(), pairs["document"].tolist())
    trainer.train()
    after = trainer.evaluate()["eval_loss"]
    rank = trainer.accelerator.process_index
    report = {
        "world_size": distributed.get_world_size(),
        "type": trainer.accelerator.distributed_type,
        "classes": sorted({type(part).__name__ for part in trainer.model.parameters()}),
        "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
        "after": after,
        "before": before.tolist(),
    }
    if rank == 0:  # alone, as the recipes do
        scores = retriever.score(pairs["query"].tolist(), pairs["document"].tolist())
        report["scores"] = scores.tolist()
        retriever.save(output / "retriever")
    (output / f"rank{rank}.json").write_text(json.dumps(report))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
    leave_process_group()
