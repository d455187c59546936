"""A job that is stopped anywhere and begun again ends as one that was never stopped."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from toy_runs import (
    ROOT,
    contents,
    subprocess_environment,
    write_beir,
    write_loop_config,
)

SCRIPT = Path(__file__).parent / "scripts" / "faulty_job.py"
ROUNDS = {0: ("_warm_up", "_train_retriever"), 1: ("_train_generator", "_train_retriever")}
TRAINED = {
    "_warm_up": "generator",
    "_train_generator": "generator",
    "_train_retriever": "retriever",
}
# What a signal or an error does, and where: at every point. A full disk shows at the next large
# file, so its points are those after which one is still written.
KINDS = ("SIGKILL", "SIGTERM", "interrupt", "exception", "full disk")


def points() -> set[str]:
    """Return the points of a job of one round after the supervised one."""
    places = {"summary", "report", "export of the generator"}
    steps = set()
    for number, trainings in ROUNDS.items():
        places |= {f"{stage} {number}" for stage in trainings}
        places |= {f"{stage} {number}" for stage in ("_write_queries", "_judge", "_evaluate_round")}
        steps |= {f"round_{number:02d}/{TRAINED[name]}_checkpoints: step 1" for name in trainings}
    return {f"{place}: {end}" for place in places for end in ("begin", "end")} | steps


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shop")
    return write_loop_config(folder / "run.yaml", write_beir(folder / "beir"))


@pytest.fixture(scope="module")
def finished(config):
    """Return what a job without a fault leaves at the place where the others run."""
    folder = config.parent / "run"
    assert run_job("none", config.parent / "had.txt", config, folder) == 0
    left = contents(folder)
    shutil.rmtree(folder)
    return left


def run_job(kind: str, had: Path, config: Path, folder: Path) -> int:
    """Run the job until it ends or meets a fault; return its exit status."""
    words = [kind, had, "--config", config, "--output_dir", folder]
    environment = subprocess_environment(
        PYTHONPATH=os.pathsep.join([str(ROOT), str(SCRIPT.parents[1])]),
        PYTHONHASHSEED="0",  # PEFT writes the set of adapted layers in the order of their hashes
    )
    done = subprocess.run([sys.executable, SCRIPT, *words], capture_output=True, env=environment)
    return done.returncode


@pytest.mark.slow
@pytest.mark.timeout(1_800)
@pytest.mark.parametrize("kind", KINDS)
def test_a_job_with_a_fault_at_every_point_ends_as_one_without(kind, config, finished, tmp_path):
    had, folder = tmp_path / "had.txt", config.parent / "run"
    statuses = [run_job(kind, had, config, folder)]
    while statuses[-1] and len(statuses) < 60:
        statuses.append(run_job(kind, had, config, folder))
    left = contents(folder)
    shutil.rmtree(folder)
    assert statuses[-1] == 0
    met = had.read_text().splitlines()
    assert set(met) <= points() and len(met) == len(set(met))
    if kind == "full disk":
        assert len(statuses) > 10
    else:
        assert set(met) == points() and len(statuses) == len(met) + 1
    if kind == "interrupt":
        assert set(statuses[:-1]) == {130}
    assert left == finished
