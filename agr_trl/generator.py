"""The generator G: a sequence-to-sequence model that reads a product and writes queries for it."""

import hashlib
import logging
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import torch
from httpx2 import HTTPError
from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import EntryNotFoundError
from peft import LoraConfig, PeftModel, TaskType
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS
from transformers import (
    AutoModelForSeq2SeqLM,
    DataCollatorForSeq2Seq,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
)

from agr_trl.adapters import below_adapter
from agr_trl.bad_numbers import BadNumbersCallback
from agr_trl.config import LoraArguments, SamplingArguments, WarmUpArguments
from agr_trl.data import RelevanceDataset
from agr_trl.dropout import disable_dropout
from agr_trl.errors import UserError
from agr_trl.files import read_json
from agr_trl.loading import (
    LOADING_ERRORS,
    load_config,
    load_model,
    load_tokenizer,
    resolve_model_name,
)
from agr_trl.sampling import GREEDY, mark_unknown_pieces, sample_completions
from agr_trl.seq2seq_trainer import decoder_prefix, refuse_sharding
from agr_trl.small_models import build_small_t5
from agr_trl.terminal import progress
from agr_trl.word_matches import words

logger = logging.getLogger(__name__)

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
HUB_ERRORS = (OSError, ValueError, HTTPError)  # of a download; the second for what is no name
ADAPTER_FILES = [ADAPTER_WEIGHTS, "*.json", "*.txt", "*.model"]  # its own and the tokenizer's
_WORD = re.compile(r"[^\W\d_]{2,}")
_NUMBER = re.compile(r"[\d.,/]+")
_SHORT = re.compile(r"[^\W\d_]{1,3}\W*(s\W*)?")


def load_generator(
    name_or_path: str,
) -> tuple[PreTrainedModel | PeftModel, PreTrainedTokenizerBase]:
    """Load a full model, or a LoRA adapter over its base model, from a folder or from the Hub.

    Both are ready to train on. An adapter stays an adapter, so that switching it off gives the
    model below, the anchor of the KL term. Weights are float32 whatever they are stored in. Raises
    `UserError` when there is no encoder-decoder, or the adapter's base is gone or another one.
    """
    folder = _adapter_folder(name_or_path)
    path, revision = _model_below(folder) if folder else (resolve_model_name(name_or_path), "main")
    if not load_config(path, revision).is_encoder_decoder:
        raise UserError(f"`{path}` is no encoder-decoder; the generator must be one, such as T5")
    model = load_model(AutoModelForSeq2SeqLM, path, revision=revision)
    tokenizer = load_tokenizer(str(folder or path), model)
    return _with_adapter(model, folder, path) if folder else model, tokenizer


def _adapter_folder(name_or_path: str, revision: str = "main") -> Path | None:
    """Return the folder of an adapter, downloaded where a repository on the Hub holds it alone.

    None for a full model, and for what is not found: loading it says why.
    """
    folder = Path(name_or_path)
    if (folder / ADAPTER_CONFIG).is_file():
        return folder
    name = resolve_model_name(name_or_path)
    if Path(name).exists():
        return None
    try:
        hf_hub_download(name, "config.json", revision=revision)
        return None
    except EntryNotFoundError:  # there or, offline, in the cache
        pass
    except HUB_ERRORS:
        return None
    try:
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=ADAPTER_FILES))
    except HUB_ERRORS:
        return None
    return folder if (folder / ADAPTER_CONFIG).is_file() else None


def _with_adapter(model: PreTrainedModel, folder: Path, base: str) -> PeftModel:
    """Put the folder's adapter over its base model."""
    if not (folder / ADAPTER_WEIGHTS).is_file():
        raise UserError(f"adapter `{folder}` has no {ADAPTER_WEIGHTS}; copy or train it again")
    try:
        return PeftModel.from_pretrained(model, str(folder), is_trainable=True)
    except LOADING_ERRORS as error:
        raise UserError(
            f"adapter `{folder}` does not fit `{base}`, the base model that it names, or is cut "
            "off; copy or train it again"
        ) from error


def recorded_base(folder: Path) -> tuple[str, str]:
    """Return the model that an adapter says it stands on: name or folder, and revision.

    Raises `UserError` where the adapter's settings are damaged or name none.
    """
    file = folder / ADAPTER_CONFIG
    recorded = read_json(file)
    if not isinstance(recorded, dict) or not recorded.get("base_model_name_or_path"):
        raise UserError(
            f"`{file}` names no base model (`base_model_name_or_path`); copy or train the adapter "
            "again"
        )
    return str(recorded["base_model_name_or_path"]), str(recorded.get("revision") or "main")


def _model_below(folder: Path) -> tuple[str, str]:
    """Return the model below an adapter and its revision: that of its own run, else the recorded.

    A run that was copied or moved still records where it was, where another may be by now.
    """
    name, revision = recorded_base(folder)
    in_run = Path("round_00", "generator")
    beside = folder.parent.parent / in_run
    is_of_a_run = Path(name).parts[-2:] == in_run.parts
    if is_of_a_run and (beside / "config.json").is_file():
        return str(beside), "main"
    try:
        return resolve_model_name(name), revision
    except UserError as error:
        raise UserError(f"the base model of adapter `{folder}` is gone: {error}") from error


def weights_fingerprint(name_or_path: str, revision: str = "main") -> str:
    """Return what tells a generator's weights from others that come to the same place.

    The sha256 (hex) of a folder's weights, for an adapter those below it too; a Hub model's commit.
    """
    adapter = _adapter_folder(name_or_path, revision)
    name = str(adapter or resolve_model_name(name_or_path))
    folder = Path(name)
    if not folder.is_dir():
        load_config(name, revision)  # or says why it cannot
        # transformers keeps no commit beside a configuration any more; the cache's folder is one.
        return Path(hf_hub_download(name, "config.json", revision=revision)).parent.name
    digest = hashlib.sha256()
    for file in sorted([*folder.glob("*.safetensors"), *folder.glob("pytorch_model*.bin")]):
        with file.open("rb") as weights:
            digest.update(hashlib.file_digest(weights, "sha256").digest())
    if adapter:
        digest.update(weights_fingerprint(*_model_below(adapter)).encode())
    return digest.hexdigest()


def generator_lora(args: LoraArguments) -> LoraConfig | None:
    """Return the adapter's settings, or None where all weights are trained (rank 0)."""
    if not args.lora_rank:
        return None
    modules: str | list[str] = args.lora_modules
    if modules != "all-linear":
        modules = [name.strip() for name in args.lora_modules.split(",")]
    return LoraConfig(
        task_type=TaskType.SEQ_2_SEQ_LM,
        r=args.lora_rank,
        lora_alpha=args.lora_alpha,
        target_modules=modules,
    )


def save_merged_generator(source: Path, target: Path) -> None:
    """Write the generator at `source` as a full model that needs no base model beside it."""
    model, tokenizer = load_generator(str(source))
    if isinstance(model, PeftModel):
        model = _merged(model)
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)


def _merged(adapter: PeftModel) -> PreTrainedModel:
    """Return the model below an adapter with the adapter's weights added to its own.

    PEFT calls the head untied when it shares no weight with the encoder's embeddings. T5Gemma's
    shares the decoder's: saved as untied it would be left out, and come back random.
    """
    model = adapter.merge_and_unload()
    head = model.get_output_embeddings().weight
    if sum(each is head for _, each in model.named_parameters(remove_duplicate=False)) > 1:
        model.config.tie_word_embeddings = True
    return model


# --- Supervised warm-up -------------------------------------------------------------------------


def new_or_loaded_generator(
    args: WarmUpArguments, dataset: RelevanceDataset
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load the model to warm up, or build a small T5.

    Its word pieces come from the catalogue and the train queries, unless `gold_repeats` is 0.
    """
    if args.generator_name_or_path != "new":
        model, tokenizer = load_generator(args.generator_name_or_path)
        if isinstance(model, PeftModel):
            model = _merged(model)
        return model, tokenizer
    # Of the queries those to learn from alone: others are to be new to the model.
    queries = dataset.pairs("train")["query"].unique() if args.gold_repeats else []
    return build_small_t5(
        [*dataset.prompts()["prompt"], *queries],
        width=args.new_generator_width,
        layers=args.new_generator_layers,
        vocabulary_size=args.new_vocabulary_size,
    )


def warm_up_pairs(dataset: RelevanceDataset, args: WarmUpArguments, seed: int) -> pd.DataFrame:
    """Return prompts and the queries to learn from, columns prompt, query, kind, shuffled.

    `gold`: a train query with each product judged relevant to it, `gold_repeats` times. `pseudo`:
    queries cut from a product's own title, since a raw T5 writes prose and gold queries alone are
    too few. Raises `UserError` when the settings leave nothing to learn from.
    """
    gold = [judged_query_pairs(dataset, "train").assign(kind="gold")] if args.gold_repeats else []
    prompts = dataset.prompts().set_index("product_id")["prompt"]
    pseudo = pseudo_queries(dataset, args.pseudo_queries_per_product, seed)
    pseudo = pseudo.assign(prompt=prompts.loc[pseudo["product_id"]].to_numpy(), kind="pseudo")
    if len(pseudo) > args.max_pseudo_queries:
        pseudo = pseudo.sample(args.max_pseudo_queries, random_state=seed)
    both = pd.concat(
        [*gold * args.gold_repeats, pseudo[["prompt", "query", "kind"]]], ignore_index=True
    )
    if both.empty:
        raise UserError(
            "the warm-up has no pairs; raise `gold_repeats` or `pseudo_queries_per_product`"
        )
    return both.sample(frac=1, random_state=seed, ignore_index=True)


def pseudo_queries(dataset: RelevanceDataset, per_product: int, seed: int) -> pd.DataFrame:
    """Make queries from titles, columns product_id and query; a title without words gives none.

    Numbers and model codes are left out. Half are runs of 1 to 4 of the remaining words, half are 1
    to 3 words that many titles share ("notebook" and "toner", not names), in the title's order.
    Neither cuts what belongs together: "wood end" is no query for a wood end table.
    """
    generator = np.random.default_rng(seed)
    titles = [_title_words(title) for title in dataset.products["title"]]
    phrases = _Phrases(titles)
    rows = []
    ids = dataset.products["product_id"]
    for product_id, title in progress(zip(ids, titles, strict=True), "pseudo-queries", len(ids)):
        if not title:
            continue
        for _ in range(per_product):
            cut = phrases.span if generator.random() < 0.5 else phrases.shared_words
            rows.append((product_id, cut(title, generator)))
    return pd.DataFrame(rows, columns=["product_id", "query"])


def title_spans(titles: Iterable[str], per_title: int, seed: int) -> list[list[str]]:
    """Draw `per_title` runs of 1 to 4 words of each title, all lengths and places alike.

    The plainest synthetic queries there are, a control; a title without words gives "".
    """
    generator = np.random.default_rng(seed)
    drawn = []
    for title in titles:
        title_words = words(title)
        spans = []
        for _ in range(per_title):
            length = int(generator.integers(1, min(4, max(1, len(title_words))) + 1))
            begin = int(generator.integers(0, max(1, len(title_words) - length + 1)))
            spans.append(" ".join(title_words[begin : begin + length]))
        drawn.append(spans)
    return drawn


def warm_up_trainer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    args: Seq2SeqTrainingArguments,
    settings: WarmUpArguments,
    train: pd.DataFrame,
    dev: pd.DataFrame | None,
) -> Seq2SeqTrainer:
    """Build HF's Seq2SeqTrainer on (prompt, query) rows; dropout is off, as later under RL."""
    refuse_sharding(args)  # the policy gradient, which comes next, has to
    # Trainer would take T5's loss as already scaled and multiply it by the number of accumulation
    # steps and processes (transformers#47688).
    model.accepts_loss_kwargs = False
    disable_dropout(model)
    return Seq2SeqTrainer(
        model=model,
        args=args,
        train_dataset=_query_dataset(tokenizer, settings, train),
        eval_dataset=None if dev is None else _query_dataset(tokenizer, settings, dev),
        data_collator=DataCollatorForSeq2Seq(tokenizer, model=model),
        processing_class=tokenizer,
        callbacks=[BadNumbersCallback()],
    )


def judged_query_pairs(dataset: RelevanceDataset, split: str) -> pd.DataFrame:
    """Return the prompts and queries of a split's relevant pairs, columns prompt and query."""
    pairs = dataset.pairs(split)
    pairs = pairs[pairs["label"] >= 0.5]
    prompts = dataset.prompts().set_index("product_id")["prompt"]
    return pd.DataFrame(
        {"prompt": prompts.loc[pairs["product_id"]].to_numpy(), "query": pairs["query"].to_numpy()}
    )


def dev_query_pairs(dataset: RelevanceDataset, *, is_evaluated: bool = True) -> pd.DataFrame | None:
    """Return dev's relevant pairs as `judged_query_pairs`; None if there are none nor any need.

    Raises `UserError` where there are none and the warm-up is evaluated.
    """
    pairs = judged_query_pairs(dataset, "dev")
    if pairs.empty and is_evaluated:
        raise UserError(
            "split 'dev' has no relevant pair, so the warm-up cannot be evaluated; judge some "
            "relevant, or lower `relevant_grade`"
        )
    return None if pairs.empty else pairs


# --- Writing queries ----------------------------------------------------------------------------


@torch.inference_mode()
def sample_queries(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    settings: SamplingArguments,
    max_prompt_tokens: int,
) -> list[list[str]]:
    """Draw `queries_per_product` queries for each prompt from the plain softmax at a temperature.

    No top-k or top-p: what is drawn is the distribution that the policy gradient trains. Prompts
    are batched by length and equal ones encoded once. Uses torch's global random state; leaves the
    model as it was.
    """
    if not prompts:
        return []
    base = below_adapter(model)
    count = settings.queries_per_product
    generation = GenerationConfig(
        **GREEDY,
        max_new_tokens=settings.max_query_tokens,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=_end_tokens(base, tokenizer),
        decoder_start_token_id=decoder_prefix(base)[0],
    )
    prefix = torch.tensor([decoder_prefix(base)], device=model.device)  # with any forced BOS
    encoded = tokenizer(list(prompts), truncation=True, max_length=max_prompt_tokens)["input_ids"]
    order = sorted(range(len(prompts)), key=lambda row: len(encoded[row]))
    queries: list[list[str]] = [[] for _ in prompts]
    was_training = model.training
    model.eval()
    try:
        size = settings.sampling_batch_size
        for begin in progress(range(0, len(order), size), "writing queries"):
            # Rows are repeated here and not by `generate`, which would make each row's own keys and
            # values of what was encoded.
            rows = [row for row in order[begin : begin + size] for _ in range(count)]
            batch = tokenizer.pad(
                {"input_ids": [encoded[row] for row in rows]}, return_tensors="pt"
            )
            batch = batch.to(model.device)
            tokens, _ = sample_completions(
                model,
                batch["input_ids"],
                batch["attention_mask"],
                prefix.expand(len(rows), -1),
                generation,
                settings.sampling_temperature,
            )
            texts = tokenizer.batch_decode(tokens, skip_special_tokens=True)
            texts = mark_unknown_pieces(texts, tokens.tolist(), tokenizer)
            for row, text in zip(rows, texts, strict=True):
                queries[row].append(text.strip())
    finally:
        model.train(was_training)
    return queries


def _end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the tokens that end a query: the tokenizer's and the model's, as in TRL's trainers."""
    own = model.generation_config.eos_token_id
    declared = own if isinstance(own, list) else [own]
    return list(
        dict.fromkeys(end for end in [tokenizer.eos_token_id, *declared] if end is not None)
    )


def _query_dataset(
    tokenizer: PreTrainedTokenizerBase, settings: WarmUpArguments, frame: pd.DataFrame
) -> datasets.Dataset:
    inputs = tokenizer(
        frame["prompt"].tolist(), truncation=True, max_length=settings.max_prompt_tokens
    )
    targets = tokenizer(
        text_target=frame["query"].tolist(), truncation=True, max_length=settings.max_query_tokens
    )
    lengths = [len(ids) for ids in inputs["input_ids"]]
    columns: dict[str, Any] = {
        "input_ids": inputs["input_ids"],
        "attention_mask": inputs["attention_mask"],
        "labels": targets["input_ids"],
        "length": lengths,
    }
    return datasets.Dataset.from_dict(columns)


def _title_words(title: str) -> list[str]:
    """Return the first 16 words of a lower-cased title, without numbers, their units and codes."""
    parts = title.lower().split()
    kept = [
        part
        for before, part in pairwise(["", *parts])
        if not any(map(str.isdigit, part))
        and not (_NUMBER.fullmatch(before) and _SHORT.fullmatch(part))  # "4 gb", "1 pc(s)"
    ]
    return _WORD.findall(" ".join(kept))[:16]


class _Phrases:
    """How often words, and words side by side, occur in a catalogue's titles (lists of words)."""

    def __init__(self, titles: Sequence[list[str]]) -> None:
        self._titles_with = Counter(word for title in titles for word in set(title))
        self._count = Counter(word for title in titles for word in title)
        self._pairs = Counter(pair for title in titles for pair in pairwise(title))

    def span(self, title: list[str], generator: np.random.Generator) -> str:
        """Draw a run of 1 to 4 words; one that cuts a phrase at either end is drawn rarely."""
        spans = [
            (begin, end)
            for begin in range(len(title))
            for end in range(begin + 1, min(begin + 4, len(title)) + 1)
            if not ENGLISH_STOP_WORDS & {title[begin], title[end - 1]}
        ]
        if not spans:
            return " ".join(title[:4])
        weights = np.array([self._starts(title, b) * self._ends(title, e - 1) for b, e in spans])
        weights = weights**2 / np.sum(weights**2)
        begin, end = spans[generator.choice(len(spans), p=weights)]
        return " ".join(title[begin:end])

    def shared_words(self, title: list[str], generator: np.random.Generator) -> str:
        """Draw 1 to 3 words, common ones first, each with the words that nearly always follow."""
        first = {word: position for position, word in reversed(list(enumerate(title)))}
        places = sorted(p for word, p in first.items() if word not in ENGLISH_STOP_WORDS) or [0]
        weights = np.log1p([self._titles_with[title[place]] for place in places]) ** 2
        count = min(len(places), int(generator.integers(1, 4)))
        drawn = generator.choice(places, count, replace=False, p=weights / weights.sum())
        chosen = set(drawn.tolist())
        for place in range(len(title) - 1):
            if place in chosen and self._ends(title, place) < 0.5:
                chosen.add(place + 1)
        return " ".join(dict.fromkeys(title[place] for place in sorted(chosen)))

    def _ends(self, title: list[str], place: int) -> float:
        """Return how freely a phrase may end here: 1 - P(the next word | this word), smoothed."""
        if place + 1 == len(title):
            return 1.0
        return 1 - self._pairs[title[place], title[place + 1]] / (self._count[title[place]] + 1)

    def _starts(self, title: list[str], place: int) -> float:
        """Return how freely a phrase may begin here: 1 - P(the word before | this word)."""
        if not place:
            return 1.0
        return 1 - self._pairs[title[place - 1], title[place]] / (self._count[title[place]] + 1)
