"""One rank of test_losses.py: take one step and write what this rank saw. Started by torchrun."""

import json
import sys
from pathlib import Path

import torch
from accelerate import PartialState
from loss_scaling import train_generator, train_retriever

from agr_trl.runtime import leave_process_group


def main() -> None:
    output = Path(sys.argv[1])
    rank = PartialState(cpu=True).process_index
    for train in (train_retriever, train_generator):
        report = train(output / "two", batch_size=4, accumulation=1)
        (output / f"{train.__name__}_{rank}.json").write_text(json.dumps(report))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
    leave_process_group()
