import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from seq2seq_models import build_model, build_trainer, sample_the_same

TESTS = Path(__file__).parent


def train_on_two(tmp_path, *words):
    """Return what each of two processes saw."""
    # torchrun, because `accelerate launch --cpu --num_processes 2` runs one process and exits 0.
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    script = TESTS / "scripts" / "train_on_two_processes.py"
    environment = os.environ | {
        "PYTHONPATH": f"{TESTS}{os.pathsep}{TESTS.parent}",
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
    }
    result = subprocess.run(
        [sys.executable, *command, str(script), str(tmp_path), *words],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.parametrize("adapter", [pytest.param("full", marks=pytest.mark.slow), "lora"])
def test_two_processes_train_one_model(adapter, tmp_path):
    first, second = train_on_two(tmp_path, adapter)
    assert first["world_size"] == second["world_size"] == first["group"] == 2
    assert first["before"] == second["before"] != first["after"]
    assert first["after"] == second["after"]
    # Each rank sampled its own 4 completions a step; the logged reward is over both ranks'.
    assert len(first["completions"]) == len(second["completions"]) == 3 * 4
    assert first["completions"] != second["completions"]
    odd = [
        sum(t % 2 for t in ids) / len(ids) for r in (first, second) for ids in r["completions"][:4]
    ]
    assert first["rewards"][0] == pytest.approx(sum(odd) / 8)
    # The loss goes through the wrapper, whose hooks average the gradients.
    assert first["wrapped"].count("DistributedDataParallel") == 3
    # The script ends by asserting that none of them is left.
    assert first["gloo_threads"] or sys.platform != "linux"


@pytest.mark.slow
def test_two_processes_take_the_steps_of_one(tmp_path):
    """Where both have the same completions, rewards, loss, gradients and parameters agree."""
    trainer = build_trainer(build_model("t5"), tmp_path / "one", max_steps=3)
    trainer._sample = sample_the_same
    trainer.train()
    log = trainer.state.log_history
    parameters = [p.double().sum().item() for p in trainer.model.parameters()]
    for two in train_on_two(tmp_path, "full", "fixed"):
        assert two["world_size"] == 2
        for name, key in (("rewards", "reward"), ("losses", "loss"), ("grad_norms", "grad_norm")):
            one = [entry[key] for entry in log if key in entry]
            assert len(one) == 3 and any(one)
            assert two[name] == pytest.approx(one, rel=1e-4, abs=1e-6), name
        assert two["parameters"] == pytest.approx(parameters, rel=1e-4, abs=1e-5)
