import errno
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from toy_runs import subprocess_environment, write_beir

from agr_trl import runtime
from agr_trl.errors import UserError
from agr_trl.files import read_json, write_json, write_text
from agr_trl.runtime import (
    commit,
    exclusive,
    last_checkpoint,
    require_model,
    run_recipe,
    stopwatch,
    without_times,
)

READ_AND_MINE = """
import sys
from agr_trl import load_relevance_dataset
from agr_trl.config import RetrieverArguments
from agr_trl.search import BM25Index
from agr_trl.training_pairs import gold_pairs

dataset = load_relevance_dataset("beir", sys.argv[1])
args = RetrieverArguments(hard_negatives=1, random_negatives=1)
assert len(gold_pairs(dataset, BM25Index(dataset.documents), args, None, 0))
print(sorted({"accelerate", "datasets", "sklearn", "torch", "trl"} & sys.modules.keys()))
"""


def test_reading_data_and_mining_negatives_import_no_large_library(tmp_path):
    # torch and what brings it take 300 MiB, as much as WANDS itself.
    command = [sys.executable, "-c", READ_AND_MINE, str(write_beir(tmp_path / "shop"))]
    answer = subprocess.run(
        command, env=subprocess_environment(), capture_output=True, text=True, check=True
    )
    assert answer.stdout == "[]\n"


def fail(error):
    def main():
        raise error

    return main


def test_a_user_error_is_one_line_and_status_2(capsys):
    with pytest.raises(SystemExit) as caught:
        run_recipe(fail(UserError("no such\n  folder")))
    assert caught.value.code == 2
    assert capsys.readouterr() == ("", "error: no such folder\n")


def test_an_interrupt_says_how_to_go_on(capsys):
    with pytest.raises(SystemExit) as caught:
        run_recipe(fail(KeyboardInterrupt()))
    assert caught.value.code == 130
    assert "the same command continues" in capsys.readouterr().err


def chained(error, cause):
    error.__context__ = cause
    return error


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        SafetensorError(
            "Error while serializing: I/O error: No space left on device (os error 28)"
        ),
        chained(RuntimeError("unexpected pos 576"), OSError(errno.ENOSPC, "full")),  # torch.save
    ],
    ids=["disk", "quota", "safetensors", "torch"],
)
def test_a_full_disk_is_one_line(error, capsys):
    with pytest.raises(SystemExit) as caught:
        run_recipe(fail(error))
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: no space is left on the disk; free some, and the same command")


def test_another_error_of_the_disk_is_no_full_one():
    with pytest.raises(OSError, match="Input/output error"):
        run_recipe(fail(OSError(errno.EIO, "Input/output error")))


def test_a_file_without_permission_is_one_line(capsys):
    with pytest.raises(SystemExit) as caught:
        run_recipe(fail(PermissionError(errno.EACCES, "Permission denied", "shop/corpus.jsonl")))
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: `shop/corpus.jsonl` may not be read or written; change its")


def test_other_errors_keep_their_traceback_and_success_is_silent():
    with pytest.raises(ZeroDivisionError):
        run_recipe(fail(ZeroDivisionError()))
    done = []
    run_recipe(lambda: done.append(1))
    assert done == [1]


def test_a_file_is_old_or_whole(tmp_path, monkeypatch):
    file = tmp_path / "new" / "notes.txt"
    write_text(file, "first ü")
    assert file.read_text(encoding="utf-8") == "first ü"

    def interrupted(descriptor):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_text(file, "second")
    assert file.read_text(encoding="utf-8") == "first ü"
    monkeypatch.undo()
    write_text(file, "second")
    assert [path.name for path in file.parent.iterdir()] == ["notes.txt"]


def test_json_is_written_stably_and_refuses_nan(tmp_path):
    file = tmp_path / "metrics.json"
    write_json(file, {"b": 1.5, "a": [None, "ü"]})
    assert file.read_text(encoding="utf-8") == (
        '{\n  "b": 1.5,\n  "a": [\n    null,\n    "ü"\n  ]\n}\n'
    )
    for value in (float("nan"), float("inf"), np.float64("nan")):
        with pytest.raises(ValueError, match="not JSON compliant"):
            write_json(file, {"a": value})
    assert read_json(file) == {"b": 1.5, "a": [None, "ü"]}
    file.write_text("{")
    with pytest.raises(UserError, match=r"metrics\.json` is not valid JSON"):
        read_json(file)


def test_the_stopwatch_adds_up_also_after_an_error(monkeypatch):
    ticks = iter([1.0, 3.5, 10.0, 11.0])
    monkeypatch.setattr(runtime.time, "perf_counter", lambda: next(ticks))
    times = {}
    with stopwatch(times, "train"):
        pass
    with pytest.raises(ZeroDivisionError), stopwatch(times, "train"):
        raise ZeroDivisionError
    assert times == {"train": 3.5}


def test_the_last_checkpoint_is_the_newest_whole_one(tmp_path):
    assert last_checkpoint(tmp_path / "none") is None
    assert last_checkpoint(tmp_path) is None
    for name in ("checkpoint-9", "checkpoint-10", "checkpoint-11", "checkpoint-best"):
        (tmp_path / name).mkdir()
        if name != "checkpoint-11":  # interrupted while it was written
            (tmp_path / name / "trainer_state.json").write_text("{}")
    assert last_checkpoint(str(tmp_path)) == str(tmp_path / "checkpoint-10")


def test_slow_bfloat16_is_told_once(monkeypatch, caplog, tmp_path):
    assert runtime.matrix_speed(8, dtype=torch.bfloat16) > 0
    runtime.warn_of_slow_bfloat16.cache_clear()
    speeds = {torch.bfloat16: 2.0, torch.float32: 2.0}
    monkeypatch.setattr(runtime, "matrix_speed", lambda size, dtype=torch.float32: speeds[dtype])
    runtime.warn_of_slow_bfloat16()
    assert not caplog.records
    runtime.warn_of_slow_bfloat16.cache_clear()
    speeds[torch.float32] = 3.0
    for device, bf16 in (("cuda", True), ("cpu", False), ("cpu", True), ("cpu", True)):
        args = SimpleNamespace(bf16=bf16, device=torch.device(device), output_dir=str(tmp_path))
        runtime.train(SimpleNamespace(args=args, train=lambda resume_from_checkpoint: None))
        assert len(caplog.records) == (bf16 and device == "cpu")
    assert "take 1.5 times as long in bfloat16" in caplog.text
    runtime.warn_of_slow_bfloat16.cache_clear()


def test_times_and_nan_are_left_out():
    numbers = {"eval_loss": 0.5, "eval_runtime": 3, "eval_samples_per_second": 2.0, "epoch": 1.0}
    numbers |= {"total_flos": 7, "step_time": 1, "eval_pr_auc": float("nan"), "note": None}
    assert without_times(numbers) == {"eval_loss": 0.5, "epoch": 1.0, "note": None}


def test_the_commit_is_known_or_said_to_be_unknown(monkeypatch):
    assert commit() == "unknown" or len(commit()) == 12

    def missing(*args, **options):
        raise FileNotFoundError("git")

    monkeypatch.setattr(subprocess, "run", missing)
    assert commit() == "unknown"


@pytest.fixture
def started(monkeypatch, tmp_path):
    """Run in an empty folder; recipes that would be started are listed and make nothing."""
    monkeypatch.chdir(tmp_path)
    calls = []

    def run(command, env, check):
        calls.append((Path(command[-1]).name, env))
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(subprocess, "run", run)
    return calls


def test_a_model_that_is_there_or_has_another_name_passes(started, tmp_path):
    for name in ("config.json", "adapter_config.json"):
        folder = tmp_path / "runs" / name.partition("_")[0]
        folder.mkdir(parents=True)
        (folder / name).write_text("{}")
        with pytest.raises(UserError, match="is not there yet"):  # nor are its weights
            require_model(f"runs/{folder.name}", "train_retriever", is_demo=False)
        (folder / "model.safetensors").touch()
        require_model(f"runs/{folder.name}", "train_retriever", is_demo=True)
    require_model("bert-base-uncased", "train_retriever", is_demo=False)
    assert started == []


def test_a_missing_model_stops_with_the_command_to_run(started):
    with pytest.raises(
        UserError, match=r"run `python recipes/train_retriever\.py --config FILE.yaml` first"
    ):
        require_model("runs/wands/retriever", "train_retriever", is_demo=False)
    assert started == []


def test_the_demo_makes_a_missing_model_in_one_process(started, monkeypatch, tmp_path):
    for name in ("WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "TORCHELASTIC_RUN_ID", "GROUP_RANK"):
        monkeypatch.setenv(name, "1")
    with pytest.raises(UserError, match="has made no `runs/demo/retriever`"):
        require_model("runs/demo/retriever", "train_retriever", is_demo=True)
    name, environment = started[0]
    assert name == "train_retriever.py" and "PATH" in environment
    assert not {"WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR"} & environment.keys()
    assert not any(key.startswith(("TORCHELASTIC_", "GROUP_")) for key in environment)

    def run(command, env, check):
        model = tmp_path / "runs" / "demo" / "retriever"
        model.mkdir(parents=True)
        (model / "config.json").write_text("{}")
        (model / "model.safetensors").touch()
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(subprocess, "run", run)
    require_model("runs/demo/retriever", "train_retriever", is_demo=True)


def test_a_failing_recipe_is_named(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        subprocess, "run", lambda *args, **options: subprocess.CompletedProcess(args, 1)
    )
    with pytest.raises(UserError, match=r"warm_up_generator\.py` failed"):
        require_model("runs/demo/generator", "warm_up_generator", is_demo=True)


START = """
import json, logging, sys, random, warnings
from agr_trl.runtime import run_recipe, start

def main():
    start(3)
    levels = [logging.getLogger(name).getEffectiveLevel() for name in ("agr_trl", "other")]
    warnings.warn("`is_gradient_checkpointing` is deprecated and will be removed", FutureWarning)
    warnings.warn("`something_else` is deprecated", FutureWarning)
    print(json.dumps([levels, random.random()]))

run_recipe(main)
"""


def test_start_seeds_and_logs():
    # In a process of its own, since it changes logging and the environment.
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)}
    command = [sys.executable, "-c", START]
    answer = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    levels, number = json.loads(answer.stdout)
    assert levels == [20, 30] and number == pytest.approx(0.23796, abs=1e-5)  # Random(3)
    assert "1 process(es), commit" in answer.stderr
    # What TRL brings about at every step is hushed, and nothing else.
    assert "`something_else` is deprecated" in answer.stderr
    assert "is_gradient_checkpointing" not in answer.stderr


def test_start_refuses_processes_that_do_not_work_together(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "false")
    with pytest.raises(UserError, match="launcher announced 2 processes but 1 work together"):
        runtime.start(0)


HOLD = """
import sys, time
from pathlib import Path
from agr_trl.runtime import exclusive
with exclusive(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_second_job_on_a_run_folder_is_refused_and_a_killed_one_holds_nothing(tmp_path):
    folder = tmp_path / "run"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)],
        stdout=subprocess.PIPE,
        text=True,
        env=subprocess_environment(),
    )
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(UserError, match="another job is at work"), exclusive(folder):
            pass
    finally:
        holder.kill()
        holder.wait()
    with exclusive(folder):  # the killed job left its file, not its lock
        assert (folder / ".lock").exists()
    with exclusive(folder):
        pass


def test_hardware_names_the_processor_and_its_cores(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    device, _, torch_version = runtime.hardware().rpartition(", torch ")
    assert torch_version == torch.__version__
    found = re.fullmatch(r"(\d+) CPU cores \((.+)\)", device)
    assert int(found[1]) == os.cpu_count()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file() and "model name" in cpuinfo.read_text():
        assert f"model name\t: {found[2]}\n" in cpuinfo.read_text()
