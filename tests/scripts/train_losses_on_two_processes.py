"""One rank of test_losses.py: take one step and write what this rank saw. Started by torchrun."""

import json
import sys
from pathlib import Path

import torch
from accelerate import PartialState
from loss_scaling import train_generator, train_retriever
from torch import distributed


def main() -> None:
    output = Path(sys.argv[1])
    rank = PartialState(cpu=True).process_index
    for train in (train_retriever, train_generator):
        report = train(output / "two", batch_size=4, accumulation=1)
        (output / f"{train.__name__}_{rank}.json").write_text(json.dumps(report))
    distributed.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
