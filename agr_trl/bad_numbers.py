"""Training that has gone wrong is noticed when it is logged, and named with what to change."""

import logging
import math
from typing import Any

import numpy as np
import pandas as pd
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from agr_trl.errors import UserError
from agr_trl.search import Scorer

logger = logging.getLogger(__name__)

FP16_PATIENCE = 100  # steps: its scale of 65,536 is halved at each overflow, so some 16 are normal
NO_GRADIENT = (
    "all queries of every product earn the same, so there is no gradient; raise `num_generations` "
    "or `temperature`, or lower `min_relevance`"
)
# Logged name, the value at which nothing is learned any more, and what to tell the user.
IDLE_VALUES = (
    ("frac_reward_zero_std", 1.0, NO_GRADIENT),
    ("reward_std", 0.0, NO_GRADIENT),  # a KL term takes part in the one above, and never equals
    (
        "rewards/accepted/mean",
        0.0,
        "no query would be accepted; lower `min_relevance` or warm the generator up for longer",
    ),
    (
        "completions/clipped_ratio",
        1.0,
        "no query ends within `max_completion_length`; raise it or warm the generator up longer",
    ),
    (
        "queries/query_words",
        0.0,
        "all queries are blank; warm the generator up for longer or lower `learning_rate`",
    ),
)


class BadNumbersCallback(TrainerCallback):
    """Stop at a number that is not finite; warn, once each, when nothing can be learned.

    Looks at what a Trainer logs, every `logging_steps` steps, without cost in between. Checkpoints
    from before stay, and so do earlier rounds. Loss, gradient and reward must be finite, under fp16
    the gradient once in FP16_PATIENCE steps; the warnings are `IDLE_VALUES`.
    """

    def __init__(self) -> None:
        self._told: set[str] = set()
        self._last_finite = 0  # step

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        """Raise `UserError` for a NaN or an infinity, warn of idle training."""
        logged = {name: value for name, value in (logs or {}).items() if _is_number(value)}
        if math.isfinite(logged.get("grad_norm", math.nan)):
            self._last_finite = state.global_step
        if args.fp16 and state.global_step - self._last_finite < FP16_PATIENCE:
            logged.pop("grad_norm", None)  # its scaler skips a step that overflows, and goes on
        for name, value in logged.items():
            if not math.isfinite(value):
                raise UserError(
                    f"step {state.global_step}: `{name}` is {value}; lower `learning_rate` "
                    f"(now {args.learning_rate}), or train in float32 or bfloat16"
                )
        for name, idle, advice in IDLE_VALUES:
            if logged.get(name) == idle and advice not in self._told:
                self._told.add(advice)
                logger.warning("step %d: %s", state.global_step, advice)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def refuse_constant_scores(scorer: Scorer, pairs: pd.DataFrame) -> None:
    """Raise `UserError` for a retriever that says the same of all pairs, to 1e-6 in log-odds.

    Asks for the first 200 of `pairs` (columns query and document).
    """
    few = pairs.head(200)
    scores = scorer(few["query"].tolist(), few["document"].tolist())
    if len(scores) > 1 and np.ptp(scores) < 1e-6:
        raise UserError(
            f"the retriever gives all {len(scores)} dev pairs the log-odds {scores[0]:.3f}; "
            "lower `retriever.learning_rate`, or train for more steps"
        )
