"""One rank of test_two_processes.py: train and write what this rank saw. Started by torchrun.

Arguments: a folder, `full` or `lora`, and perhaps `fixed`, for completions that depend on nothing.
"""

import json
import sys
from pathlib import Path

import torch
from peft import LoraConfig
from seq2seq_models import build_model, build_trainer, sample_the_same, share_of_odd_tokens
from torch import distributed

from agr_trl.runtime import leave_process_group


def main() -> None:
    output, adapter = Path(sys.argv[1]), sys.argv[2]
    completions: list[list[int]] = []

    def reward(completion_ids: list[list[int]], **kwargs: object) -> list[float]:
        completions.extend(completion_ids)
        return share_of_odd_tokens(completion_ids)

    peft_config = None
    if adapter == "lora":
        peft_config = LoraConfig(task_type="SEQ_2_SEQ_LM", r=4, target_modules="all-linear")
    trainer = build_trainer(
        build_model("t5"),
        output / "run",
        options={"reward_funcs": reward, "peft_config": peft_config},
        per_device_train_batch_size=4,
        max_steps=3,
    )
    if "fixed" in sys.argv:
        trainer._sample = sample_the_same
    wrapped: list[str] = []
    score = trainer._score
    trainer._score = lambda model, *args: (
        wrapped.append(type(model).__name__),
        score(model, *args),
    )[1]
    before = sum(p.double().sum().item() for p in trainer.model.parameters())
    trainer.train()
    rank = trainer.accelerator.process_index
    report = {
        "world_size": trainer.accelerator.num_processes,
        "group": distributed.get_world_size(),
        "before": before,
        "after": sum(p.double().sum().item() for p in trainer.model.parameters()),
        "completions": completions,
        "rewards": [entry["reward"] for entry in trainer.state.log_history if "reward" in entry],
        "grad_norms": [e["grad_norm"] for e in trainer.state.log_history if "grad_norm" in e],
        "losses": [e["loss"] for e in trainer.state.log_history if "loss" in e],
        "parameters": [p.double().sum().item() for p in trainer.model.parameters()],
        "wrapped": wrapped,
        "gloo_threads": gloo_threads(),
    }
    (output / f"rank{rank}.json").write_text(json.dumps(report))


def gloo_threads() -> list[str]:
    """The names of this process's threads that move tensors between processes, on Linux."""
    names = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
    return [name for name in names if "gloo" in name]


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
    leave_process_group()
    assert not gloo_threads(), "they could abort the interpreter's end"
