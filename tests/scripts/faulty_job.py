"""Run an adversarial job that meets a fault at the first of its points that had none yet.

Arguments: the kind of fault, a file that lists the points that had theirs, the job's own words. A
point is a place in a stage: its begin, its first training step, its end (all is written, but under
no final name). The exit status tells a job that ended (0) from one that met a fault. From a "full
disk" on no file grows beyond 2,000 bytes: the next large one stays half written. A "lost worker" is
the second process of two, started by torchrun; every other fault hits the first, or only, process.
"""

import os
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from toy_runs import STAGES, load_recipe
from transformers import TrainerCallback

from agr_trl import adversarial
from agr_trl.adversarial import AdversarialRun
from agr_trl.runtime import run_recipe

FAULTS: dict[str, Callable[[], None]] = {
    "none": lambda: None,
    "SIGKILL": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "lost worker": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "SIGTERM": lambda: os.kill(os.getpid(), signal.SIGTERM),
    "interrupt": lambda: _raise(KeyboardInterrupt()),
    "exception": lambda: _raise(RuntimeError("a fault")),
    "full disk": lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, resource.RLIM_INFINITY)),
}


def _raise(error: BaseException) -> None:
    raise error


class Faults:
    """Meets one fault, at the first point that had none yet."""

    def __init__(self, kind: str, had: Path) -> None:
        self.fault, self.had = FAULTS[kind], had
        self.is_hit = os.environ.get("RANK", "0") == ("1" if kind == "lost worker" else "0")
        had.touch()

    def point(self, name: str) -> None:
        """Pass a point of the job."""
        if not self.is_hit or name in self.had.read_text().splitlines():
            return
        with self.had.open("a") as file:
            file.write(f"{name}\n")
        self.fault()

    def around(self, owner: object, name: str, where: Callable[..., str]) -> None:
        """Put points before and after a function; `where` names its call."""
        work = getattr(owner, name)

        def with_points(*args, **kwargs):
            called = where(*args)
            self.point(f"{called}: begin")
            result = work(*args, **kwargs)
            self.point(f"{called}: end")
            return result

        with_points.__name__ = name
        setattr(owner, name, with_points)

    def within_training(self) -> None:
        """Put a point after the first step of each training."""
        train = adversarial.train_stage
        faults = self

        class Point(TrainerCallback):
            def on_step_begin(self, args, state, control, **kwargs):
                if state.global_step == 1:
                    faults.point(f"{'/'.join(Path(args.output_dir).parts[-2:])}: step 1")

        def with_point(trainer):
            trainer.add_callback(Point())
            train(trainer)

        adversarial.train_stage = with_point


def main() -> None:
    kind, had, *words = sys.argv[1:]
    faults = Faults(kind, Path(had))
    for stage in STAGES:
        faults.around(AdversarialRun, stage, lambda run, target, number, s=stage: f"{s} {number}")
    faults.around(AdversarialRun, "_judge", lambda run, drawn, number: f"_judge {number}")
    faults.around(adversarial, "save_merged_generator", lambda *paths: "export of the generator")
    faults.around(AdversarialRun, "_summary", lambda *args: "summary")
    faults.within_training()
    sys.argv = ["train_adversarial.py", *words]
    recipe = load_recipe("train_adversarial")
    faults.around(recipe, "write_report", lambda *args: "report")
    run_recipe(recipe.main)


if __name__ == "__main__":
    main()
