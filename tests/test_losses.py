import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from loss_scaling import train_generator, train_retriever

from agr_trl.losses import relevance_bce, trainer_relevance_loss

TESTS = Path(__file__).parent


def test_values_by_hand():
    logits = torch.tensor([0.0, 0.0, 2.0, -2.0])
    labels = torch.tensor([1.0, 0.0, 1.0, 1.0])
    # softplus(-2) = ln(1 + e^-2) = .1269, softplus(2) = .1269 + 2
    expected = [math.log(2), math.log(2), 0.126928, 2.126928]
    assert relevance_bce(logits, labels).tolist() == pytest.approx(expected, abs=1e-6)


def test_soft_labels_mix_both_losses():
    # .25 * softplus(-1) + .75 * softplus(1) = .25 * .313262 + .75 * 1.313262
    loss = relevance_bce(torch.tensor([1.0]), torch.tensor([0.25]))
    assert loss.item() == pytest.approx(1.063262, abs=1e-6)
    # Lowest where sigmoid(z) is the label, and then it is the label's entropy.
    assert relevance_bce(torch.zeros(1), torch.tensor([0.5])).item() == pytest.approx(math.log(2))


def test_a_column_of_logits_and_half_precision_give_a_row_in_float32():
    loss = relevance_bce(torch.zeros(3, 1, dtype=torch.bfloat16), torch.ones(3))
    assert loss.shape == (3,) and loss.dtype == torch.float32
    # Far out where float16 would overflow, the loss is the logit itself.
    assert relevance_bce(torch.tensor([-1e5]), torch.ones(1)).item() == pytest.approx(1e5)


def test_the_trainers_loss_is_a_sum_over_the_effective_batch():
    outputs = {"logits": torch.zeros(2, 1)}
    labels = torch.tensor([1.0, 0.0])
    assert trainer_relevance_loss(outputs, labels).item() == pytest.approx(math.log(2))
    loss = trainer_relevance_loss(outputs, labels, num_items_in_batch=torch.tensor(8))
    assert loss.item() == pytest.approx(2 * math.log(2) / 8)


@pytest.mark.parametrize("train", [train_retriever, train_generator])
def test_accumulation_changes_nothing(train, tmp_path):
    whole = train(tmp_path / "whole", batch_size=8, accumulation=1)
    parts = train(tmp_path / "parts", batch_size=2, accumulation=4)
    assert parts["loss"] == pytest.approx(whole["loss"], rel=1e-5)
    assert parts["grad_norm"] == pytest.approx(whole["grad_norm"], rel=1e-4)
    assert parts["weights"] == pytest.approx(whole["weights"], rel=1e-4, abs=1e-7)
    assert parts["weights"] != whole["before"]


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path):
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = os.environ | {
        "PYTHONPATH": f"{TESTS}{os.pathsep}{TESTS.parent}",
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
    }
    script = TESTS / "scripts" / "train_losses_on_two_processes.py"
    result = subprocess.run(
        [sys.executable, *command, str(script), str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    for train in (train_retriever, train_generator):
        one = train(tmp_path / "one", batch_size=8, accumulation=1)
        for rank in (0, 1):
            two = json.loads((tmp_path / f"{train.__name__}_{rank}.json").read_text())
            assert two["world_size"] == 2
            assert two["loss"] == pytest.approx(one["loss"], rel=1e-5)
            assert two["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-4)
            assert two["eval_loss"] == pytest.approx(one["eval_loss"], rel=1e-5)
            assert two["weights"] == pytest.approx(one["weights"], rel=1e-4, abs=1e-7)
