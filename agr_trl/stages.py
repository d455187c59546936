"""What the recipes and the adversarial loop share: builders from settings, and training stages."""

import logging
import shutil
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import yaml
from accelerate import PartialState
from peft import LoraConfig, PeftModel
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

from agr_trl.acceptance import AcceptanceFilter, vocabulary_of
from agr_trl.bad_numbers import BadNumbersCallback
from agr_trl.config import (
    OF_THE_HUB,
    WITHOUT_EFFECT,
    DataArguments,
    LoraArguments,
    PromptArguments,
    Recipe,
    RewardArguments,
    as_yaml,
)
from agr_trl.data import RelevanceDataset, load_relevance_dataset
from agr_trl.errors import UserError
from agr_trl.files import read_json, write_json, write_text
from agr_trl.generator import generator_lora
from agr_trl.relevance import EmbeddingScorer, Teacher
from agr_trl.retriever import Retriever
from agr_trl.rewards import AcceptanceReward, RelevanceReward, RetrieverLossReward
from agr_trl.runtime import (
    commit,
    hardware,
    is_main_process,
    train,
    versions,
    wait_for_everyone,
    without_times,
)
from agr_trl.search import BM25Index, Scorer
from agr_trl.seq2seq_trainer import Seq2SeqRLOOTrainer
from agr_trl.trackers import QueriesToTensorBoard, end_stage, keep_tensorboard

logger = logging.getLogger(__name__)

FREE_SETTINGS: Collection[str] = (
    "rounds",
    "kept_models",
    "dataset_path",
)  # may differ when a run is resumed
# Settings that older versions wrote down though they had no effect there, and that are refused now.
# Whether a fraction had one the data's fingerprint says.
REFUSED_NOW = (
    *(setting for _, setting, _ in WITHOUT_EFFECT),
    *("dev_fraction", "test_fraction", "label_smoothing_factor", "resume_from_checkpoint"),
)


def load_dataset(args: DataArguments, split: str | None = None) -> RelevanceDataset:
    """Load the data set that the settings name."""
    return load_relevance_dataset(
        args.dataset_format,
        args.dataset_path,
        split,
        relevant_grade=args.relevant_grade,
        dev_fraction=args.dev_fraction,
        test_fraction=args.test_fraction,
        split_seed=args.split_seed,
        esci_locale=args.esci_locale,
        esci_version=args.esci_version,
    )


def catalogue_prompts(dataset: RelevanceDataset) -> pd.DataFrame:
    """Return the whole catalogue as prompts, with the columns that the rewards read."""
    return dataset.prompts().assign(
        title=dataset.products["title"].to_numpy(), product_index=np.arange(len(dataset.products))
    )


def acceptance_filter(
    args: RewardArguments, index: BM25Index, dataset: RelevanceDataset, relevance: EmbeddingScorer
) -> AcceptanceFilter:
    """Return the acceptance rules, which know the words that `known_words_only` asks for."""
    known = _known_words(dataset) if args.known_words_only else None
    return AcceptanceFilter(args, index, known, relevance)


def _known_words(dataset: RelevanceDataset) -> frozenset[str]:
    """Return the words of the catalogue and of the train queries.

    But a stop word has to come from a title or a query: sentences of descriptions have "our" and
    "any", and a generator that copies them writes "any sofa".
    """
    asked = vocabulary_of([*dataset.products["title"], *dataset.pairs("train")["query"].unique()])
    return asked | (vocabulary_of(dataset.documents) - ENGLISH_STOP_WORDS)


def fitted_teacher(pairs: pd.DataFrame, *judges: Scorer) -> Teacher:
    """Return the teacher that these judges make on judged pairs (query, document, label)."""
    return Teacher(*judges).fit(
        pairs["query"].tolist(), pairs["document"].tolist(), pairs["label"].to_numpy()
    )


def calibrated_relevance(
    dataset: RelevanceDataset, scorer: Scorer, with_negatives: Callable[[], pd.DataFrame]
) -> Teacher:
    """Return S turned into probabilities, fitted on the judged train pairs.

    Most BEIR sets list relevant products only; then on `with_negatives()`, which has mined ones.
    """
    train = dataset.pairs("train")
    return fitted_teacher(with_negatives() if (train["label"] >= 0.5).all() else train, scorer)


def attack_rewards(
    retrievers: Sequence[Retriever],
    relevance: EmbeddingScorer,
    acceptance: AcceptanceFilter,
    teacher: Teacher | None,
    catalogue: Sequence[str],
    *,
    bfloat16: bool = False,
) -> list[Any]:
    """Return the rewards that `reward_weights` weighs: loss of the frozen R, S, acceptance.

    Several retrievers are attacked together. `teacher` gives soft labels, which only `loss_reward:
    disagreement` reads. With `bfloat16`, the generator's own precision, R scores under autocast.
    """
    for retriever in retrievers:
        retriever.to_device().bfloat16 = bfloat16
    accepted = AcceptanceReward(relevance, acceptance)
    loss = RetrieverLossReward(
        retrievers[0],
        acceptance.settings,
        accepted,
        teacher,
        acceptance.index,
        catalogue,
        others=retrievers[1:],
    )
    return [loss, RelevanceReward(relevance), accepted]


def generator_trainer(
    model: Any,
    tokenizer: Any,
    args: Any,
    lora: LoraArguments,
    settings: PromptArguments,
    prompts: pd.DataFrame,
    rewards: list[Any],
) -> Seq2SeqRLOOTrainer:
    """Build the policy-gradient trainer on the catalogue's prompts.

    Training that begins from an adapter goes on with it, and with its rank and scale. Raises
    `UserError` where the settings name others.
    """
    is_adapter = isinstance(model, PeftModel)
    if is_adapter and isinstance(own := model.peft_config["default"], LoraConfig):
        for name, value in (("lora_rank", own.r), ("lora_alpha", own.lora_alpha)):
            if value != (wanted := getattr(lora, name)):
                raise UserError(
                    f"the generator is an adapter with `{name}` {value}, not {wanted}; set it to "
                    f"{value}, or begin from a whole model"
                )
    try:
        trainer = Seq2SeqRLOOTrainer(
            model=model,
            reward_funcs=rewards,
            args=args,
            train_dataset=datasets.Dataset.from_pandas(prompts, preserve_index=False),
            processing_class=tokenizer,
            callbacks=[BadNumbersCallback()],
            peft_config=None if is_adapter else generator_lora(lora),
            max_prompt_tokens=settings.max_prompt_tokens,
        )
    except ValueError as error:  # such as PEFT's for `lora_modules` that the model does not have
        raise UserError(str(error)) from error
    if args.log_completions:
        trainer.add_callback(QueriesToTensorBoard(trainer))
    return trainer


def train_stage(trainer: Any) -> None:
    """Train from the last checkpoint if there is one, followed as a run of its own."""
    keep_tensorboard(trainer)
    train(trainer)
    end_stage(trainer)
    wait_for_everyone()


def remove_checkpoints(folder: Path) -> None:
    """Remove the checkpoints of a stage, when what it trained is there, and whole."""
    for checkpoints in folder.glob("*_checkpoints"):
        shutil.rmtree(checkpoints, ignore_errors=True)


def save_log(trainer: Any, path: Path) -> None:
    """Write what a trainer logged, without times."""
    write_json(path, [without_times(entry) for entry in trainer.state.log_history])


def begin_run_folder(
    recipe: Recipe,
    folder: Path,
    dataset: RelevanceDataset,
    free: Collection[str] = FREE_SETTINGS,
    **more: Any,
) -> None:
    """Write config.yaml and run.json, or refuse to resume a run of other settings or data.

    A folder that holds nothing else is begun anew: its settings were found to be wrong. run.json
    says what a run's numbers come from: the data, code, libraries and machine that it
    began with, and whatever `more` a job writes there. Others of the last three are warned of,
    since its last digits may then differ.
    """
    settings = recipe.resolved()
    settings.pop("output_dir")
    state = {
        "data_fingerprint": dataset.fingerprint(),
        "data": dataset.fingerprints(),
        "commit": commit(),
        "versions": versions(),
        "hardware": hardware(),
        "processes": PartialState().num_processes,
        **more,
    }
    config_file, state_file = folder / "config.yaml", folder / "run.json"
    text = as_yaml(settings)
    is_same, holds_work = False, _holds_work(folder)
    if holds_work and config_file.is_file() and state_file.is_file():
        refuse_other_settings(config_file, settings, free, recipe.defaults())
        before = read_json(state_file)
        if before["data_fingerprint"] != state["data_fingerprint"]:
            changed = "; ".join(_changes(before.get("data", {}), state["data"]))
            raise UserError(
                f"`{folder}` was begun with other data ({changed}); give another --output_dir"
            )
        if changed := "; ".join(_changes(before, state)):
            logger.warning("`%s` was begun elsewhere, so digits may differ: %s", folder, changed)
        is_same = config_file.read_text(encoding="utf-8") == text
    wait_for_everyone()
    if is_main_process() and not is_same:
        write_text(config_file, text)
        if not (holds_work and state_file.is_file()):
            write_json(state_file, state)
    wait_for_everyone()


def _holds_work(folder: Path) -> bool:
    own = ("config.yaml", "run.json", ".lock")
    return folder.is_dir() and any(path.name not in own for path in folder.iterdir())


def refuse_other_settings(
    config_file: Path,
    settings: dict[str, Any],
    free: Collection[str] = FREE_SETTINGS,
    defaults: dict[str, Any] | None = None,
) -> None:
    """Raise `UserError` when a run folder was made with other settings, the `free` ones apart.

    A setting that its version did not have yet counts as the default, so that an upgrade does not
    end a long run; so does one that is not given any more.
    """
    old = _flat(yaml.safe_load(config_file.read_text(encoding="utf-8")))
    now, default = _flat(settings), _flat(defaults or {})
    for name in old.keys() - now.keys():
        setting = name.rpartition(".")[2]
        if setting in REFUSED_NOW or setting.startswith(OF_THE_HUB):
            del old[name]
    default_of_later = {name: value for name, value in default.items() if name in now}
    default_of_dropped = {name: default[name] for name in old.keys() & default.keys()}
    changed = _changes(default_of_later | old, default_of_dropped | now, free)
    if changed:
        shown = changed[:5] + ([f"and {len(changed) - 5} more"] if len(changed) > 5 else [])
        raise UserError(
            f"`{config_file.parent}` was begun with other settings ({'; '.join(shown)}); "
            "give another --output_dir, or remove the folder"
        )


def _flat(values: dict[str, Any]) -> dict[str, Any]:
    """Return a nested mapping with dots in its names: "section.setting" -> value."""
    flat: dict[str, Any] = pd.json_normalize(values).T[0].to_dict() if values else {}
    return flat


def _changes(before: dict[str, Any], now: dict[str, Any], free: Collection[str] = ()) -> list[str]:
    """Return "name: old -> new" of what differs between two nested mappings."""
    old, new = _flat(before), _flat(now)
    return [
        f"{name}: {old.get(name)} -> {new.get(name)}"
        for name in sorted(old.keys() | new.keys())
        if str(old.get(name)) != str(new.get(name)) and name not in free
    ]


def demo_oracle(args: DataArguments) -> Any:
    """Return the demo shop's oracle for the shop that the settings name."""
    from agr_trl.data.demo import load_demo_oracle

    return load_demo_oracle(args.dataset_path)
