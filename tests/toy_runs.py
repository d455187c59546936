"""Whole jobs at toy size: a small shop on disk, settings of two steps, recipes in this process."""

import importlib.util
import json
import logging
import os
import sys
from itertools import product
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd
import pytest
import torch
import yaml

from agr_trl.adversarial import AdversarialRun
from agr_trl.config import parse_recipe

ROOT = Path(__file__).resolve().parents[1]
RECIPES = ROOT / "recipes"
COLOURS = ("red", "blue", "green", "white")
THINGS = ("oak chair", "metal chair", "desk lamp", "floor lamp", "dining table")
QUERIES = {
    "train": ("red chair", "blue lamp", "green table", "white chair", "red lamp"),
    "dev": ("blue chair", "green lamp", "white table"),
    "test": ("green chair", "white lamp"),
}

TRAINER = {
    "per_device_train_batch_size": 8,
    "max_steps": 2,
    "learning_rate": 1e-3,
    "eval_strategy": "no",
    "save_strategy": "no",
    "logging_steps": 1,
    "dataloader_pin_memory": False,
    "disable_tqdm": True,
    "report_to": "none",
}
RETRIEVER = TRAINER | {
    "retriever_name_or_path": "new",
    "new_retriever_width": 32,
    "new_retriever_layers": 1,
    "new_retriever_steps": 2,
    "max_pair_tokens": 32,
    "hard_negatives": 0,
}
WARM_UP = TRAINER | {
    "generator_name_or_path": "new",
    "new_generator_width": 32,
    "new_generator_layers": 1,
    "new_vocabulary_size": 120,
    "max_prompt_tokens": 24,
    "max_query_tokens": 5,
}
REWARD = {"relevance_model": "lsa", "min_relevance": 0.0}
GENERATOR = TRAINER | {
    "max_prompt_tokens": 24,
    "lora_rank": 4,
    "num_generations": 4,
    "max_completion_length": 5,
    "activation_checkpointing": False,
    "bf16": False,
}
STAGES = ("_warm_up", "_train_generator", "_write_queries", "_train_retriever", "_evaluate_round")
LOOP = {
    "rounds": 1,
    "prompts_per_round": 8,
    "products_per_round": 10,
    "queries_per_product": 2,
    "max_query_tokens": 5,
    "synthetic_hard_negatives": 0,
    "dev_metric": "judged/ndcg@10",
}


def titles() -> list[str]:
    """Return 20 titles, colour by colour."""
    return [" ".join(parts) for parts in product(COLOURS, THINGS)]


def grade(query: str, title: str) -> int:
    """Return 2 where colour and kind agree, 1 where the kind does, else 0."""
    colour, kind = query.split()
    return (1 + title.startswith(colour)) if title.endswith(kind) else 0


def write_beir(folder: Path, splits: tuple[str, ...] = ("train", "dev", "test")) -> Path:
    """Write the shop as a BEIR folder in which every query has all its products judged."""
    (folder / "qrels").mkdir(parents=True)
    corpus = [{"_id": f"p{n}", "title": title, "text": ""} for n, title in enumerate(titles())]
    ids = {query: f"q{n}" for n, query in enumerate(sum(QUERIES.values(), ()))}
    _write_lines(folder / "corpus.jsonl", corpus)
    _write_lines(
        folder / "queries.jsonl", [{"_id": key, "text": query} for query, key in ids.items()]
    )
    for split in splits:
        rows = [
            (ids[query], f"p{n}", grade(query, title))
            for query in QUERIES[split]
            for n, title in enumerate(titles())
        ]
        table = pd.DataFrame(rows, columns=["query-id", "corpus-id", "score"])
        table.to_csv(folder / "qrels" / f"{split}.tsv", sep="\t", index=False)
    return folder


def write_pairs(folder: Path) -> Path:
    """Write the shop's train and dev judgements as CSV pairs."""
    folder.mkdir(parents=True)
    for split in ("train", "dev"):
        rows = [
            (query, title, int(grade(query, title) > 0))
            for query in QUERIES[split]
            for title in titles()
        ]
        table = pd.DataFrame(rows, columns=["query", "document", "label"])
        table.to_csv(folder / f"{split}.csv", index=False)
    return folder


def write_loop_config(path: Path, data: Path, dataset_format: str = "beir", **loop: Any) -> Path:
    """Write the YAML of a toy adversarial run."""
    content = {
        "dataset_format": dataset_format,
        "dataset_path": str(data),
        **(LOOP | loop),
        "retriever": RETRIEVER,
        "warm_up": WARM_UP,
        "reward": REWARD,
        "generator": GENERATOR,
    }
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def as_words(settings: dict[str, Any], section: str = "") -> list[str]:
    """Write settings as command-line words."""
    prefix = f"--{section}." if section else "--"
    return [f"{prefix}{name}={value!s}" for name, value in settings.items()]


def build_run(config: Path, folder: Path, *words: str) -> AdversarialRun:
    """Return the run of train_adversarial.py with these settings, not begun."""
    arguments = ["--config", str(config), "--output_dir", str(folder), *words]
    sections = load_recipe("train_adversarial").SECTIONS
    return AdversarialRun(parse_recipe(sections, "recipes/train_adversarial.py", arguments))


def load_recipe(name: str) -> ModuleType:
    """Import recipes/NAME.py, which is no package."""
    spec = importlib.util.spec_from_file_location(f"recipe_{name}", RECIPES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def run_main(name: str, *words: str | Path) -> None:
    """Run a recipe's main with a command line, in this process, and undo what it sets globally."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [f"{name}.py", *map(str, words)])
        if not torch.accelerator.is_available():
            patch.setenv("ACCELERATE_USE_CPU", "true")
        try:
            load_recipe(name).main()
        finally:
            root.handlers[:] = handlers
            root.setLevel(level)
            logging.getLogger("agr_trl").setLevel(logging.NOTSET)


def contents(folder: Path) -> dict[str, bytes]:
    """Return every file of the run that a rerun must give again: no times, no report."""
    left_out = ("timings.json", "report.html", "run.json")
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in left_out
    }


def read_size(folder: Path) -> int:
    """Return the bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def subprocess_environment(**variables: str) -> dict[str, str]:
    """Return the environment for a recipe in a process of its own."""
    return os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **variables}


def _write_lines(path: Path, records: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
