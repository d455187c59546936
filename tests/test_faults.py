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
# Of a job of two processes: which of them is killed, the kind of fault that does it, and where.
LOST = {"worker": "lost worker", "main process": "SIGKILL"}
LOST_AT = (
    "round_00/retriever_checkpoints: step 1",
    "round_01/generator_checkpoints: step 1",
    "_write_queries 1: begin",
    "_write_queries 1: end",
    "_evaluate_round 1: begin",
)
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
MAX_SECONDS = 180  # for a job of which one process was killed; a collective would wait 30 minutes


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
    assert run_job("none", config.parent / "had.txt", config, folder)[0] == 0
    return take_contents(folder)


@pytest.fixture(scope="module")
def finished_by_two(config):
    """Return what two processes leave."""
    folder = config.parent / "run"
    status, said = run_job("none", config.parent / "had.txt", config, folder, TORCHRUN)
    assert status == 0, said
    return take_contents(folder)


def take_contents(folder: Path) -> dict[str, bytes]:
    """Return the contents of a run folder that then is gone: the next job runs at its place."""
    left = contents(folder)
    shutil.rmtree(folder)
    return left


def run_job(
    kind: str, had: Path, config: Path, folder: Path, launcher: tuple[str, ...] = ()
) -> tuple[int, str]:
    """Run the job until it ends or meets a fault; return its exit status and its last words."""
    words = [kind, had, "--config", config, "--output_dir", folder]
    environment = subprocess_environment(
        ACCELERATE_USE_CPU="true",
        PYTHONPATH=os.pathsep.join([str(ROOT), str(SCRIPT.parents[1])]),
        PYTHONHASHSEED="0",  # PEFT writes the set of adapted layers in the order of their hashes
    )
    done = subprocess.run(
        [sys.executable, *launcher, SCRIPT, *words],
        capture_output=True,
        text=True,
        env=environment,
        timeout=MAX_SECONDS if launcher else None,
    )
    return done.returncode, done.stderr[-2_000:]


@pytest.mark.slow
@pytest.mark.timeout(1_800)
@pytest.mark.parametrize("kind", KINDS)
def test_a_job_with_a_fault_at_every_point_ends_as_one_without(kind, config, finished, tmp_path):
    had, folder = tmp_path / "had.txt", config.parent / "run"
    statuses = [run_job(kind, had, config, folder)[0]]
    while statuses[-1] and len(statuses) < 60:
        statuses.append(run_job(kind, had, config, folder)[0])
    left = take_contents(folder)
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


@pytest.mark.slow
@pytest.mark.timeout(1_800)
@pytest.mark.parametrize("lost", LOST)
def test_a_job_of_two_that_loses_a_process_ends_soon_and_resumes(
    lost, config, finished_by_two, tmp_path
):
    had, folder = tmp_path / "had.txt", config.parent / "run"
    had.write_text("".join(f"{point}\n" for point in sorted(points() - set(LOST_AT))))
    for number in range(len(LOST_AT)):
        status, said = run_job(LOST[lost], had, config, folder, TORCHRUN)
        assert status and "SIGKILL" in said, said
        assert len(had.read_text().splitlines()) == len(points()) - len(LOST_AT) + number + 1
    status, said = run_job(LOST[lost], had, config, folder, TORCHRUN)
    assert status == 0, said
    assert take_contents(folder) == finished_by_two
