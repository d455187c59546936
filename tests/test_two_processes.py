import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent


@pytest.mark.parametrize("adapter", [pytest.param("full", marks=pytest.mark.slow), "lora"])
def test_two_processes_train_one_model(adapter, tmp_path):
    # torchrun, because `accelerate launch --cpu --num_processes 2` runs one process and exits 0.
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    script = TESTS / "scripts" / "train_on_two_processes.py"
    environment = os.environ | {
        "PYTHONPATH": f"{TESTS}{os.pathsep}{TESTS.parent}",
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
    }
    result = subprocess.run(
        [sys.executable, *command, str(script), str(tmp_path), adapter],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    first, second = (json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1))
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
