"""Experiment trackers (`report_to`): where their files go, the queries as text."""

from importlib import import_module
from pathlib import Path
from typing import Any

from transformers import TrainerCallback
from transformers.integrations.integration_utils import TensorBoardCallback

QUERIES_SHOWN = 32


def keep_tensorboard(trainer: Any) -> None:
    """Move a stage's TensorBoard files away from its checkpoints, which are removed when it ends.

    From RUN/round_01/retriever_checkpoints to RUN/round_01/tensorboard/retriever.
    """
    folder = Path(trainer.args.output_dir)
    for callback in _tensorboard_of(trainer):
        kept = folder.with_name("tensorboard") / folder.name.removesuffix("_checkpoints")
        callback.logging_dir = str(kept)


def end_stage(trainer: Any) -> None:
    """End what Trainer leaves open: Weights & Biases would log the next stage into the same run."""
    if "wandb" in trainer.args.report_to:
        import_module("wandb").finish()


class QueriesToTensorBoard(TrainerCallback):
    """Write generated queries and their rewards to TensorBoard, as text below "completions".

    With `log_completions` TRL sends its table of them to wandb and trackio alone.
    """

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write the last step's first queries, behind the numbers that TensorBoard just took."""
        if not (state.is_world_process_zero and self._trainer._logs["completion"]):
            return
        for callback in _tensorboard_of(self._trainer):
            text = completions_table(self._trainer._logs, QUERIES_SHOWN)
            callback.tb_writer.add_text("completions", text, state.global_step)
            callback.tb_writer.flush()


def completions_table(logs: dict[str, Any], rows: int) -> str:
    """Return TRL's logged prompts, completions, rewards and advantages as a Markdown table."""
    columns = {"prompt": logs["prompt"], "completion": logs["completion"], **logs["rewards"]}
    columns["advantage"] = logs["advantages"]
    queries = list(zip(*columns.values(), strict=True))[:rows]
    lines = [map(_cell, line) for line in (columns, ["---"] * len(columns), *queries)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value: str | float) -> str:
    if isinstance(value, float):
        return f"{value:.3f}"
    return value.replace("|", "\\|").replace("\n", " ")


def _tensorboard_of(trainer: Any) -> list[TensorBoardCallback]:
    callbacks = trainer.callback_handler.callbacks
    return [callback for callback in callbacks if isinstance(callback, TensorBoardCallback)]
