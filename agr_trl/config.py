"""Settings of the recipes: our dataclasses, and the one parser that reads YAML and command line.

A dataclass owns the name, type and help of a setting; a YAML file in `recipes/` owns the values of a
run; the command line overrides single values. `transformers.TrainingArguments` and `trl.RLOOConfig` are
used as they are, so the fields here are only what those lack.
"""

import contextlib
import difflib
import io
import json
import sys
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, NoReturn

import yaml
from transformers import HfArgumentParser

from agr_trl.errors import UserError

FLAT_IN_EVERY_RECIPE = ("output_dir", "seed")


@dataclass
class RunArguments:
    output_dir: str = field(metadata={"help": "Run folder; a rerun on it resumes"})
    seed: int = field(default=0, metadata={"help": "Seed of everything but the data split"})


@dataclass
class DataArguments:
    dataset_format: Literal["wands", "beir", "pairs", "demo"] = field(
        default="demo",
        metadata={
            "help": "wands: WANDS' three files; beir: BEIR folder; pairs: query,document,label"
        },
    )
    dataset_path: str | None = field(
        default=None,
        metadata={
            "help": "Folder or file. wands: downloaded when unset; demo: generated when unset"
        },
    )
    relevant_grade: int = field(
        default=1,
        metadata={
            "help": "A judgement of at least this grade is relevant (WANDS: 1 Partial, 2 Exact)"
        },
    )
    dev_fraction: float | None = field(
        default=None,
        metadata={"help": "Share of queries for dev where the data has no splits (default: .2)"},
    )
    test_fraction: float | None = field(
        default=None,
        metadata={"help": "Share of queries for test where the data has no splits (default: .2)"},
    )
    split_seed: int = field(default=0, metadata={"help": "Seed of the split by query"})


@dataclass
class RetrieverArguments:
    retriever_name_or_path: str = field(
        default="bert-large-uncased",
        metadata={"help": "Model or folder; 'new' builds a small BERT from the catalogue"},
    )
    max_pair_tokens: int = field(
        default=256,
        metadata={"help": "Tokens of query and document together; the longer is cut first"},
    )
    hard_negatives: int = field(
        default=1, metadata={"help": "BM25 negatives mined for each relevant training pair"}
    )
    random_negatives: int = field(
        default=1, metadata={"help": "Random negatives for each relevant training pair"}
    )
    negative_margin: float = field(
        default=0.05,
        metadata={"help": "A mined negative scores at least this much below the relevant product"},
    )
    retriever_lora_rank: int = field(
        default=0, metadata={"help": "LoRA rank; 0 trains all weights. The saved model is merged"}
    )
    early_stopping_patience: int = field(
        default=0,
        metadata={"help": "Evaluations without a better dev score before stopping; 0: never"},
    )
    new_retriever_width: int = field(default=128, metadata={"help": "Width of a 'new' BERT"})
    new_retriever_layers: int = field(default=3, metadata={"help": "Layers of a 'new' BERT"})


@dataclass
class GeneratorArguments:
    generator_name_or_path: str = field(
        default="t5-base",
        metadata={
            "help": "Model or folder; 'new' builds a small T5 from the catalogue (warm-up only)"
        },
    )
    max_prompt_tokens: int = field(
        default=128, metadata={"help": "Tokens of a prompt; the rest is cut"}
    )


@dataclass
class WarmUpArguments(GeneratorArguments):
    max_query_tokens: int = field(default=16, metadata={"help": "Tokens of a target query"})
    pseudo_queries_per_product: int = field(
        default=2, metadata={"help": "Self-supervised queries made from each product's own words"}
    )
    max_pseudo_queries: int = field(
        default=40_000,
        metadata={"help": "At most this many pseudo-queries (sampled with the seed)"},
    )
    gold_repeats: int = field(
        default=4,
        metadata={"help": "How often each judged query appears beside the pseudo-queries"},
    )
    new_generator_width: int = field(default=256, metadata={"help": "Width of a 'new' T5"})
    new_generator_layers: int = field(
        default=3, metadata={"help": "Encoder and decoder layers of a 'new' T5"}
    )
    new_vocabulary_size: int = field(default=4_000, metadata={"help": "Word pieces of a 'new' T5"})


@dataclass
class LoraArguments:
    lora_rank: int = field(
        default=16, metadata={"help": "LoRA rank of the generator; 0 trains all weights"}
    )
    lora_alpha: int = field(default=32, metadata={"help": "LoRA scale; the update is alpha / rank"})
    lora_modules: str = field(
        default="all-linear",
        metadata={"help": "Modules with an adapter: all-linear, or names with commas"},
    )


@dataclass
class RewardArguments:
    relevance_model: str = field(
        default="sentence-transformers/all-MiniLM-L6-v2",
        metadata={
            "help": "Sentence-transformers model of S(q, d); 'lsa' fits TF-IDF + SVD on the catalogue"
        },
    )
    loss_reward: Literal["bce", "uncertainty", "margin_band"] = field(
        default="bce", metadata={"help": "Shape of the retriever-loss reward"}
    )
    loss_cap_nats: float = field(
        default=4.0, metadata={"help": "Loss above this earns no more reward"}
    )
    band_low: float = field(
        default=0.3, metadata={"help": "margin_band: lowest retriever probability with full reward"}
    )
    band_high: float = field(
        default=0.8,
        metadata={"help": "margin_band: highest retriever probability with full reward"},
    )
    gate_loss_reward: bool = field(
        default=True,
        metadata={"help": "Give the loss reward only to queries with min_relevance or more"},
    )
    min_relevance: float = field(
        default=0.7, metadata={"help": "Lowest S in [0, 1] of an accepted query ((cosine + 1) / 2)"}
    )
    round_trip_top_k: int = field(
        default=0,
        metadata={
            "help": "The product must be in BM25's top k for its query to be accepted; 0: no check"
        },
    )


@dataclass
class SamplingArguments:
    queries_per_product: int = field(default=4, metadata={"help": "Queries drawn for each product"})
    sampling_temperature: float = field(default=0.9, metadata={"help": "Softmax temperature"})
    sampling_batch_size: int = field(
        default=64, metadata={"help": "Products in one generate() call"}
    )
    max_query_tokens: int = field(default=16, metadata={"help": "Tokens of a generated query"})


@dataclass
class LoopArguments(SamplingArguments):
    rounds: int = field(
        default=2, metadata={"help": "Adversarial rounds after the supervised round 0"}
    )
    prompts_per_round: int = field(
        default=2_000, metadata={"help": "Products that the generator is trained on in a round"}
    )
    products_per_round: int = field(
        default=2_000, metadata={"help": "Products that queries are written for in a round"}
    )
    max_synthetic_share: float = field(
        default=0.6,
        metadata={"help": "Largest share of synthetic pairs in a round's training pairs"},
    )
    gold_repeats_per_round: int = field(
        default=1, metadata={"help": "How often each gold pair is seen in a round's training pairs"}
    )
    synthetic_hard_negatives: int = field(
        default=1, metadata={"help": "BM25 negatives a synthetic query"}
    )
    synthetic_random_negatives: int = field(
        default=1, metadata={"help": "Random negatives for each synthetic query"}
    )
    soft_labels: bool = field(
        default=True,
        metadata={
            "help": "Label synthetic pairs with S calibrated on gold pairs instead of 1 and 0"
        },
    )
    continue_generator: bool = field(
        default=True,
        metadata={"help": "Start from the last kept generator; else from the warm-up each time"},
    )
    keep_old_queries: bool = field(
        default=True, metadata={"help": "Train also on the accepted queries of earlier kept rounds"}
    )
    dev_metric: str = field(
        default="pr_auc", metadata={"help": "Dev metric that decides whether a round is kept"}
    )
    max_dev_drop: float = field(
        default=0.0,
        metadata={"help": "A round is kept if the dev metric falls by no more than this"},
    )


class _RecipeParser(HfArgumentParser):
    """HF's parser, which knows how dataclass types become arguments, with errors of one line."""

    def __init__(self, dataclass_types: Sequence[type], section: str) -> None:
        self.section = section
        super().__init__(dataclass_types, allow_abbrev=False, add_help=False)

    def error(self, message: str) -> NoReturn:
        where = f" in section `{self.section}`" if self.section else ""
        raise UserError(f"{message}{where}; `--help` lists the settings")


@dataclass
class Stage:
    """The checked settings of one stage, built into dataclasses when the stage starts.

    Building late matters: two `TrainingArguments` with different precision in one process raise
    "AcceleratorState already initialized" when both are built before the first trainer.
    """

    dataclass_types: tuple[type, ...]
    values: dict[str, Any]

    def build(self, **overrides: Any) -> list[Any]:
        """Return one instance for each dataclass type; `overrides` replace parsed values."""
        values = self.values | overrides
        return [
            dataclass_type(**{f.name: values[f.name] for f in fields(dataclass_type) if f.init})
            for dataclass_type in self.dataclass_types
        ]


@dataclass
class Recipe:
    """Parsed settings: stages by section name ('' holds the flat ones) and what they were read from."""

    stages: dict[str, Stage]
    config_file: Path
    given: dict[str, Any]

    def __getitem__(self, section: str) -> Stage:
        return self.stages[section]

    def resolved(self) -> dict[str, Any]:
        """Return all our settings and the given ones of the libraries, as a YAML file would hold them."""
        resolved: dict[str, Any] = {}
        for section, stage in self.stages.items():
            given = self.given if not section else self.given.get(section, {})
            ours = {
                f.name
                for dataclass_type in stage.dataclass_types
                if dataclass_type.__module__ == __name__
                for f in fields(dataclass_type)
            }
            values = {
                name: value
                for name, value in sorted(stage.values.items())
                if value is not None and (name in ours or name in given)
            }
            resolved |= {section: values} if section else values
        return resolved

    @property
    def is_demo(self) -> bool:
        """Whether the embedded demo data is used, where a missing earlier stage may be made first."""
        return self.stages[""].values["dataset_format"] == "demo"


def parse_recipe(
    sections: dict[str, Sequence[type]], recipe_file: str, argv: Sequence[str] | None = None
) -> Recipe:
    """Read `--config FILE.yaml` (or the recipe's demo YAML) and the command line into stages.

    `sections` maps a section name to its dataclasses; the key "" holds flat settings. Settings of a
    section are written `section:` in YAML and `--section.name value` on the command line. Unknown keys,
    abbreviations and bad types raise `UserError` before anything else happens.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    parsers = {name: _RecipeParser(types, name) for name, types in sections.items()}
    if "--help" in arguments or "-h" in arguments:
        _print_help(parsers, recipe_file)
    config_file, arguments = _take_config(arguments, recipe_file)
    yaml_values = _read_yaml(config_file)
    tokens: dict[str, list[str]] = {name: [] for name in sections}
    for key, value in yaml_values.items():
        if key in sections and isinstance(value, dict):
            for inner_key, inner_value in value.items():
                tokens[key] += _as_tokens(inner_key, inner_value)
        else:
            tokens[""] += _as_tokens(key, value)
    for name, group in _split_by_section(arguments, sections).items():
        tokens[name] += group
    if len(sections) > 1:
        _refuse_flat_fields_in_sections(tokens)
    stages = {
        name: Stage(tuple(sections[name]), _parse(parsers[name], tokens[name])) for name in sections
    }
    given = {name: _given(parsers[name], stages[name].values, tokens[name]) for name in sections}
    return Recipe(stages, config_file, given.pop("") | given)


def _parse(parser: _RecipeParser, tokens: list[str]) -> dict[str, Any]:
    with contextlib.redirect_stderr(io.StringIO()):
        namespace, unknown = parser.parse_known_args(tokens, Namespace())
    if unknown:
        known = sorted(action.dest for action in parser._actions)
        parser.error(f"unknown setting `{unknown[0]}` (known: {_close(unknown[0], known)})")
    return vars(namespace)


def _close(name: str, known: list[str]) -> str:
    stripped = name.lstrip("-").split("=")[0]
    return ", ".join(difflib.get_close_matches(stripped, known, n=3, cutoff=0.4)) or "none like it"


def _given(parser: _RecipeParser, values: dict[str, Any], tokens: list[str]) -> dict[str, Any]:
    names = {
        token[2:].split("=")[0].replace("-", "_") for token in tokens if token.startswith("--")
    }
    return {name: values[name] for name in sorted(names) if name in values}


def _take_config(arguments: list[str], recipe_file: str) -> tuple[Path, list[str]]:
    recipe = Path(recipe_file)
    config_file = recipe.parent / "demo" / f"{recipe.stem}.yaml"
    rest: list[str] = []
    position = 0
    while position < len(arguments):
        argument = arguments[position]
        if argument == "--config":
            position += 1
            if position == len(arguments):
                raise UserError("`--config` needs a YAML file after it")
            config_file = Path(arguments[position])
        elif argument.startswith("--config="):
            config_file = Path(argument.removeprefix("--config="))
        else:
            rest.append(argument)
        position += 1
    if not config_file.is_file():
        raise UserError(
            f"config file `{config_file}` does not exist; give one with `--config FILE.yaml`"
        )
    return config_file, rest


def _read_yaml(config_file: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(config_file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        problem = " ".join(str(error).split())
        raise UserError(f"`{config_file}` is not valid YAML: {problem}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UserError(
            f"`{config_file}` holds a {type(values).__name__}; it must hold `key: value` lines"
        )
    return values


def _as_tokens(key: str, value: Any) -> list[str]:
    """Write a YAML value as command-line words, so that both are checked by the same parser."""
    if value is None:
        return []
    if isinstance(value, list):
        return [f"--{key}", *[str(item) for item in value]]
    if isinstance(value, dict):
        return [f"--{key}={json.dumps(value)}"]
    return [f"--{key}={str(value).lower() if isinstance(value, bool) else value}"]


def _split_by_section(
    arguments: list[str], sections: dict[str, Sequence[type]]
) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {name: [] for name in sections}
    current = ""
    for position, argument in enumerate(arguments):
        if argument.startswith("--"):
            name, dot, rest = argument[2:].partition(".")
            current = name if dot and name in sections else ""
            groups[current].append(f"--{rest}" if current else argument)
        elif position == 0:
            raise UserError(f"`{argument}` is not a setting; settings are written `--name value`")
        else:
            groups[current].append(argument)
    return groups


def _refuse_flat_fields_in_sections(tokens: dict[str, list[str]]) -> None:
    for section, words in tokens.items():
        for name in FLAT_IN_EVERY_RECIPE:
            if section and any(word.split("=")[0] == f"--{name}" for word in words):
                raise UserError(
                    f"`{section}.{name}` cannot be set; use `--{name}`, which all stages share"
                )


def _print_help(parsers: dict[str, _RecipeParser], recipe_file: str) -> NoReturn:
    write = sys.stdout.write
    write(
        f"{Path(recipe_file).name} [--config FILE.yaml] [--NAME VALUE | --SECTION.NAME VALUE] ...\n"
    )
    for section, parser in parsers.items():
        prefix = f"{section}." if section else ""
        for action in parser._actions:
            if action.option_strings[0].startswith("--no_"):
                continue
            text = " ".join(str(action.help or "").split())
            write(f"  --{prefix}{action.dest} (default: {action.default})\n      {text}\n")
    raise SystemExit(0)
