"""Try settings of the attack with Optuna: each trial is one round, all from the same round 0.

start/round_00/       warm-up and supervised retriever, made once
trial_000/round_01/   a trial's generator and, for `dev_metric`, its queries and retriever
trials.journal        Optuna's record; a rerun finishes the trial that was stopped and goes on
sweep.json            the trials, best first
"""

import json
import logging
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from accelerate.utils import broadcast_object_list
from torch import OutOfMemoryError

from agr_trl.adversarial import AdversarialRun
from agr_trl.config import Recipe, SweepArguments
from agr_trl.data import RelevanceDataset
from agr_trl.errors import UserError
from agr_trl.files import read_json, write_json
from agr_trl.runtime import exclusive, is_main_process, wait_for_everyone
from agr_trl.stages import FREE_SETTINGS, begin_run_folder, load_dataset

logger = logging.getLogger(__name__)

SWEPT_SECTIONS = ("generator", "reward")
SHARED = ("relevance", "index", "prompts", "gold", "calibrated")  # of the data, not of a trial


def run_sweep(recipe: Recipe) -> list[dict[str, Any]]:
    """Run or resume the trials; return them as sweep.json holds them, best first.

    A trial that ends in a ValueError, such as one of which no query was accepted, or asks for more
    memory than a GPU has, counts as failed and the sweep goes on. Raises `UserError` for a space
    that names no setting of the attack, and where all trials fail.
    """
    if find_spec("optuna") is None:
        raise UserError("a sweep needs Optuna; run `pip install optuna`")
    run_args, data_args, _, args = recipe[""].build()
    folder = Path(run_args.output_dir)
    loop = recipe.without(SweepArguments)
    space = _space(loop, args.choices)
    dataset = load_dataset(data_args)
    with exclusive(folder):
        begin_run_folder(recipe, folder, dataset, {*FREE_SETTINGS, "trials"})
        start = AdversarialRun(_trial_recipe(loop, folder / "start", {}), dataset)
        start.run_rounds(0)
        study = _open_study(folder) if is_main_process() else None
        while True:
            # The main process asks Optuna, all train.
            asked = [_next_trial(study, space, args.trials, run_args.seed)] if study else [None]
            ((number, params),) = broadcast_object_list(asked)
            if number is None:
                break
            changed = _trial_recipe(loop, folder / f"trial_{number:03d}", params)
            trial = _trial(changed, dataset, start)
            value = _value(trial, args.objective) if trial else None
            if study:
                _tell(study, number, value)
        if study:
            write_json(folder / "sweep.json", {"objective": args.objective, "trials": _rows(study)})
        wait_for_everyone()
    rows: list[dict[str, Any]] = read_json(folder / "sweep.json")["trials"]
    if rows[0]["value"] is None:
        raise UserError(f"all {len(rows)} trials failed, the log says why; narrow `space`")
    return rows


def _space(loop: Recipe, choices: dict[str, Any]) -> dict[str, Any]:
    """Return Optuna's distribution of each setting; every end and value must be one of it."""
    space = {name: _distribution(name, choice) for name, choice in choices.items()}
    if not space:
        raise UserError("`space` is empty; name what to try, such as generator.learning_rate")
    for name, distribution in space.items():
        section = name.partition(".")[0]
        if section not in SWEPT_SECTIONS or name == "reward.relevance_model":
            raise UserError(
                f"`space` names `{name}`; trials share round 0, so they differ in settings of "
                f"{' and '.join(SWEPT_SECTIONS)} alone, without `reward.relevance_model`"
            )
        ends = vars(distribution)
        for value in ends.get("choices") or (ends["low"], ends["high"]):
            changed = loop.replaced(_changes({name: value}))[section]
            if section == "reward":
                changed.build()  # its ranges; a generator is built when its trial begins
    return space


def _distribution(name: str, choice: Any) -> Any:
    known = import_module("optuna.distributions")
    try:
        if isinstance(choice, list):
            return known.CategoricalDistribution([json.dumps(value) for value in choice])
        ((kind, (low, high)),) = choice.items()
        if kind in ("log", "uniform"):
            return known.FloatDistribution(float(low), float(high), log=kind == "log")
    except (AttributeError, TypeError, ValueError) as error:
        logger.debug("%s: %s", name, error)
    raise UserError(
        f"`space` has `{name}: {json.dumps(choice)}`; give {{log: [low, high]}} with low above 0, "
        "{uniform: [low, high]} or a list of values"
    )


def _changes(params: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return Optuna's parameters as section -> setting -> value; it keeps lists as texts."""
    changes: dict[str, dict[str, Any]] = {}
    for name, value in params.items():
        section, _, setting = name.partition(".")
        decoded = json.loads(value) if isinstance(value, str) else value
        changes.setdefault(section, {})[setting] = decoded
    return changes


def _trial_recipe(loop: Recipe, folder: Path, params: dict[str, Any]) -> Recipe:
    return loop.replaced(_changes(params) | {"": {"output_dir": str(folder), "rounds": 1}})


def _open_study(folder: Path) -> Any:
    optuna = import_module("optuna")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    journal = import_module("optuna.storages.journal")
    backend = journal.JournalFileBackend(str(folder / "trials.journal"))
    return optuna.create_study(
        storage=journal.JournalStorage(backend),
        study_name="sweep",
        direction="maximize",
        load_if_exists=True,
    )


def _next_trial(
    study: Any, space: dict[str, Any], trials: int, seed: int
) -> tuple[int | None, dict[str, Any]]:
    """Return the number and settings of the trial that was stopped, or of a new one."""
    optuna = import_module("optuna")
    stopped = study.get_trials(states=[optuna.trial.TrialState.RUNNING])
    if stopped:
        trial = stopped[0]
    elif len(study.trials) < trials:
        # Seeded for each trial, so that a sweep that was stopped tries what it would have tried.
        study.sampler = optuna.samplers.TPESampler(seed=(seed * 1_000 + len(study.trials)) % 2**32)
        trial = study.ask(space)
    else:
        return None, {}
    logger.info("trial %d of %d: %s", trial.number + 1, trials, trial.params)
    return trial.number, trial.params


def _trial(
    changed: Recipe, dataset: RelevanceDataset, start: AdversarialRun
) -> AdversarialRun | None:
    """Return a trial that goes on from the shared round 0; None where its settings cannot be."""
    try:
        trial = AdversarialRun(changed, dataset, start.folder)
    except UserError as error:
        logger.warning("the trial fails: %s", error)
        return None
    for name in SHARED:
        setattr(trial, name, getattr(start, name))
    return trial


def _value(trial: AdversarialRun, objective: str) -> float | None:
    """Run or resume a trial and return what it is judged by; None where it fails."""
    try:
        if objective == "dev_metric":
            trial.run_rounds(1)
            return float(trial.round_metrics(1)["dev"][trial.loop.dev_metric])
        log = read_json(trial.attack())
    except (ValueError, OutOfMemoryError) as error:  # a `UserError` is a ValueError
        logger.warning("the trial fails: %s", error)
        return None
    values = [entry[objective] for entry in log if objective in entry]
    if not values:
        known = ", ".join(sorted({name for entry in log for name in entry if "/mean" in name}))
        raise UserError(f"`objective` is {objective}; it must be dev_metric or one of {known}")
    return float(np.mean(values[len(values) // 2 :]))  # of the later half of the training


def _tell(study: Any, number: int, value: float | None) -> None:
    states = import_module("optuna.trial").TrialState
    study.tell(number, value, states.FAIL if value is None else states.COMPLETE)


def _rows(study: Any) -> list[dict[str, Any]]:
    rows = [
        {"trial": trial.number, "value": trial.value, "settings": _changes(trial.params)}
        for trial in study.trials
    ]
    return sorted(rows, key=lambda row: -np.inf if row["value"] is None else row["value"])[::-1]
