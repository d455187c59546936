"""What every recipe needs around its work: logging, processes, seeds, errors as one line."""

import errno
import gc
import logging
import os
import platform
import re
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Any

import datasets
import torch
import transformers
from accelerate import PartialState
from accelerate.utils import set_seed
from filelock import FileLock, Timeout
from torch import distributed
from transformers import Trainer, TrainerState
from transformers.trainer import TRAINER_STATE_NAME

from agr_trl.errors import UserError
from agr_trl.files import read_json
from agr_trl.report_text import visible
from agr_trl.terminal import shows_progress, terminal_text

logger = logging.getLogger(__name__)

LONGEST_WAIT = timedelta(hours=3)  # for what the main process alone does, such as an evaluation


def run_recipe(main: Callable[[], None]) -> None:
    """Run a recipe's `main`; a `UserError` becomes one line on stderr and exit status 2.

    So does a full disk, and a file without permission. An interrupt exits with 130, the shell's
    code for SIGINT. It and a full disk say that a rerun resumes.
    """
    try:
        main()
        leave_process_group()
    except UserError as error:
        sys.stderr.write(f"error: {terminal_text(' '.join(str(error).split()))}\n")
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; the same command continues from the last finished step\n")
        raise SystemExit(130) from None
    except PermissionError as error:
        place = terminal_text(str(error.filename or error))
        sys.stderr.write(
            f"error: `{place}` may not be read or written; change its permissions, or name another "
            "place\n"
        )
        raise SystemExit(2) from None
    except Exception as error:
        if not _is_full_disk(error):
            raise
        sys.stderr.write(
            "error: no space is left on the disk; free some, and the same command continues from "
            f"the last finished step ({terminal_text(' '.join(str(error).split()))})\n"
        )
        raise SystemExit(2) from None


def leave_process_group() -> None:
    """End this process's part in a distributed run; nothing happens where it has none.

    A trainer that is done but not yet collected keeps its group, and gloo's threads may then drop
    a tensor while the interpreter shuts down: a finished run aborts, once in many. See
    https://github.com/pytorch/pytorch/pull/179291. Call this when no trainer is referred to.
    """
    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()
        gc.collect()


def _is_full_disk(error: BaseException | None) -> bool:
    """Whether an error, or one that it came of, says that no space is left.

    safetensors and pyarrow raise errors of their own, which only their words tell apart.
    """
    while error is not None:
        number = error.errno if isinstance(error, OSError) else None
        if number in (errno.ENOSPC, errno.EDQUOT) or "No space left on device" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


class _LineFormatter(logging.Formatter):
    """One line a message, as a terminal may show it."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return terminal_text(visible(super().formatMessage(record)))


def _show_traceback(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    sys.stderr.write(terminal_text("".join(traceback.format_exception(kind, error, trace))))


def start(seed: int) -> None:
    """Set up processes, logging and seeds; call once, after the settings are parsed.

    Raises `UserError` when the launcher promised more processes than really run together.
    """
    if "WORLD_SIZE" not in os.environ:
        # One process is one device: Trainer would split batches over all, which G's cannot.
        first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
        os.environ["CUDA_VISIBLE_DEVICES"] = first
    if not (torch.accelerator.is_available() or "ACCELERATE_USE_CPU" in os.environ):
        # Without it torchrun on a CPU machine starts jobs that do not know of each other.
        os.environ["ACCELERATE_USE_CPU"] = "true"
    promised = int(os.environ.get("WORLD_SIZE", "1"))
    is_cpu = os.environ.get("ACCELERATE_USE_CPU", "false").lower() in ("true", "1")
    state = PartialState(cpu=is_cpu, timeout=LONGEST_WAIT)
    if state.num_processes != promised:
        raise UserError(
            f"the launcher announced {promised} processes but {state.num_processes} work together; "
            "launch with `ACCELERATE_USE_CPU=true torchrun --nproc_per_node N` on CPU machines"
        )
    level = logging.INFO if state.is_main_process else logging.WARNING
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_LineFormatter("%(asctime)s %(name)s: %(message)s", "%H:%M:%S"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    sys.excepthook = _show_traceback
    logging.getLogger("agr_trl").setLevel(level)
    transformers.utils.logging.set_verbosity_error()
    # TRL 1.16 asks models by the name that transformers 5 has deprecated, at every step.
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
    if not shows_progress():
        transformers.utils.logging.disable_progress_bar()
        datasets.disable_progress_bars()
    logging.getLogger("bm25s").setLevel(logging.WARNING)  # bm25s sets itself to DEBUG
    set_seed(seed)
    logger.info("%d process(es), commit %s", state.num_processes, commit())


def is_main_process() -> bool:
    """Whether this process writes files."""
    return PartialState().is_main_process


def wait_for_everyone() -> None:
    """Block until all processes of the job are here."""
    PartialState().wait_for_everyone()


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Hold a run folder while the body runs; only the main process does, for all of its job.

    The operating system frees the lock with the process, so a killed job holds nothing. Raises
    `UserError` when another job is at work in the folder.
    """
    if not is_main_process():
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise UserError(
            f"another job is at work in `{folder}`; wait for it or give another --output_dir"
        ) from None
    try:
        yield
    finally:
        lock.release()


def commit() -> str:
    """Return the git commit of the checkout that this package lies in, else 'unknown'."""
    folder = Path(__file__).resolve().parent
    command = ["git", "-C", str(folder), "rev-parse", "--short=12", "HEAD"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return "unknown"
    return answer.stdout.strip() or "unknown"


def hardware() -> str:
    """Return the accelerator or the CPU with its number of cores, and the version of torch."""
    device = f"{os.cpu_count()} CPU cores ({_processor()})"
    if torch.cuda.is_available():
        device = f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    return f"{device}, torch {torch.__version__}"


def _processor() -> str:
    """Return the processor's name; Python itself has none on Linux."""
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text(encoding="utf-8") if cpuinfo.is_file() else ""
    named = re.search(r"^model name\s*: (.+)", text, re.MULTILINE)
    return named[1] if named else platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that a run's numbers come from."""
    names = (
        "torch",
        "transformers",
        "trl",
        "peft",
        "accelerate",
        "datasets",
        "tokenizers",
        "numpy",
    )
    return {"python": platform.python_version()} | {name: version(name) for name in names}


@contextmanager
def stopwatch(times: dict[str, float], name: str) -> Iterator[None]:
    """Add the wall-clock seconds of the block to `times[name]`."""
    begin = time.perf_counter()
    try:
        yield
    finally:
        times[name] = round(times.get(name, 0.0) + time.perf_counter() - begin, 2)


def last_checkpoint(folder: str | Path) -> str | None:
    """Return the newest whole `checkpoint-N` that a Trainer left in a folder, or None.

    A Trainer writes `trainer_state.json` last; a checkpoint without it was interrupted.
    """
    steps = {
        int(match[1]): path.parent
        for path in Path(folder).glob("checkpoint-*/trainer_state.json")
        if (match := re.fullmatch(r"checkpoint-(\d+)", path.parent.name))
    }
    return str(steps[max(steps)]) if steps else None


def train(trainer: Trainer) -> None:
    """Train, from the last checkpoint if there is one; from one at the end nothing is left."""
    if trainer.args.bf16 and trainer.args.device.type == "cpu":
        warn_of_slow_bfloat16()
    checkpoint = last_checkpoint(trainer.args.output_dir)
    if checkpoint and _is_at_the_end(checkpoint) and not trainer.is_fsdp_enabled:
        # Trainer would take one step more: it looks whether to stop behind each step alone.
        trainer._load_from_checkpoint(checkpoint)
        trainer.state = TrainerState.load_from_json(str(Path(checkpoint, TRAINER_STATE_NAME)))
        if trainer.args.load_best_model_at_end and trainer.state.best_model_checkpoint:
            trainer._load_best_model()
    else:
        trainer.train(resume_from_checkpoint=checkpoint)


def _is_at_the_end(checkpoint: str) -> bool:
    state = read_json(Path(checkpoint, TRAINER_STATE_NAME))
    control = state.get("stateful_callbacks", {}).get("TrainerControl", {}).get("args", {})
    return bool(control.get("should_training_stop"))


@cache
def warn_of_slow_bfloat16() -> None:
    """Log, once, where this processor multiplies matrices more slowly in bfloat16 than in float32.

    Its flags do not tell: with avx512_bf16 an AMD EPYC is twice as fast, and an Intel Xeon whose
    AMX the virtual machine hides half as fast.
    """
    times = matrix_speed(512) / matrix_speed(512, dtype=torch.bfloat16)
    if times > 1.2:
        logger.warning(
            "products of matrices take %.1f times as long in bfloat16 as in float32 on this "
            "processor; leave `bf16` off",
            times,
        )


def matrix_speed(size: int = 2_048, repeats: int = 5, dtype: torch.dtype = torch.float32) -> float:
    """Return the floating-point operations a second of a large matrix product, the best of some."""
    left, right = torch.rand(size, size).to(dtype), torch.rand(size, size).to(dtype)
    best = float("inf")
    for _ in range(repeats):
        began = time.perf_counter()
        torch.mm(left, right)
        best = min(best, time.perf_counter() - began)
    return 2 * size**3 / best


def train_and_evaluate(trainer: Trainer) -> tuple[dict[str, Any], dict[str, Any]]:
    """Train, from the last checkpoint if there is one; return the dev metrics before and after.

    The first evaluation is part of `train()`. One that came earlier would mark the model as already
    prepared, without DDP: several processes would then train apart from each other.
    """
    trainer.args.eval_on_start = True
    train(trainer)
    before = next(entry for entry in trainer.state.log_history if "eval_loss" in entry)
    both = (before, trainer.evaluate())
    first, last = (
        without_times({name: value for name, value in metrics.items() if name.startswith("eval_")})
        for metrics in both
    )
    return first, last


def without_times(numbers: dict[str, Any]) -> dict[str, Any]:
    """Drop what no rerun reproduces (times, speeds) and NaN from what a Trainer logged."""
    times = ("runtime", "per_second", "flos", "step_time")
    return {
        name: value
        for name, value in numbers.items()
        if value == value and not any(word in name for word in times)
    }


def require_model(folder: str, recipe: str, is_demo: bool) -> None:
    """Make sure that an earlier stage's model is there.

    In the demo setting a missing one is made now by running its bare recipe, in one process; any
    other setting stops with the command to run. Names without `runs/` in front pass. Raises
    `UserError` for a model that is not there in the end.
    """
    is_missing = folder.startswith("runs/") and not _holds_model(folder)
    wait_for_everyone()  # nobody may see the model that another has begun to make
    if not is_missing:
        return
    script = Path(__file__).resolve().parent.parent / "recipes" / f"{recipe}.py"
    if not is_demo:
        raise UserError(
            f"`{folder}` is not there yet; run `python recipes/{recipe}.py --config FILE.yaml` "
            "first, with the file of the same setting"
        )
    if is_main_process():
        logger.info("`%s` is not there yet: running recipes/%s.py first", folder, recipe)
        answer = subprocess.run(
            [sys.executable, str(script)], env=_environment_without_launcher(), check=False
        )
        if answer.returncode:
            raise UserError(f"`python recipes/{recipe}.py` failed; see its message above")
        if not _holds_model(folder):
            raise UserError(f"`python recipes/{recipe}.py` has made no `{folder}`; mend that path")
    wait_for_everyone()


def _holds_model(folder: str) -> bool:
    names = ("config.json", "adapter_config.json")  # written before the weights
    has_config = any((Path(folder) / name).is_file() for name in names)
    return has_config and any(Path(folder).glob("*.safetensors"))


def _environment_without_launcher() -> dict[str, str]:
    """Return the environment without what a launcher set: a recipe then runs in one process."""
    launcher = re.compile(r"(LOCAL_)?(WORLD_SIZE|RANK)|MASTER_\w+|(TORCHELASTIC|GROUP|ROLE)_\w+")
    return {name: value for name, value in os.environ.items() if not launcher.fullmatch(name)}
