"""The one parser that reads YAML and command line into the dataclasses of a job's stages."""

import difflib
import json
import os
import re
import sys
from argparse import Action
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NoReturn

from transformers import HfArgumentParser

from agr_trl.config.yaml_file import read_yaml
from agr_trl.errors import UserError
from agr_trl.terminal import shows_progress

MAX_SEED = 2**31 - 1  # jobs count on from it, and NumPy takes none from 2**32 on
LIBRARIES = ("transformers.", "trl.")  # whose dataclasses of settings are used as they are

# What older versions wrote into config.yaml, section, setting and value, and never read.
WITHOUT_EFFECT = (("generator", "generator_name_or_path", "t5-base"),)
OF_THE_HUB = ("push_to_hub", "hub_")  # how settings begin that say what is published, and where

# Of a job of several stages; a stage's own library would take them too.
NEVER_IN_A_SECTION = (
    *("output_dir", "seed"),
    *("push_to_hub", "hub_model_id", "hub_private_repo", "hub_token"),
)


def _check_trackers(report_to: str | list[str] | None) -> None:
    """Raise `UserError` for a tracker that Trainer does not know or that is not installed."""
    names = [report_to] if isinstance(report_to, str) else report_to or []
    names = [name for name in names if name not in ("none", "all")]
    if not names:
        return
    from transformers.integrations.integration_utils import (  # torch
        INTEGRATION_TO_CALLBACK,
        get_available_reporting_integrations,
    )

    for name in names:
        if name not in INTEGRATION_TO_CALLBACK:
            known = ", ".join(["none", *sorted(INTEGRATION_TO_CALLBACK)])
            raise UserError(f"`report_to` names `{name}`; known are {known}")
        if name not in get_available_reporting_integrations():
            raise UserError(
                f"`report_to` names `{name}`, which is not installed; run `pip install {name}`, "
                "or use `none`"
            )


def tracked_name(output_dir: str) -> str:
    """Return what trackers call a training, from where it writes: `demo/round_01/retriever`.

    Left to itself a tracker makes a name up, and another for the evaluation after the training.
    """
    return "/".join(Path(output_dir).absolute().parts[-3:]).removesuffix("_checkpoints")


class _RecipeParser(HfArgumentParser):
    """HF's parser, which knows how dataclass types become arguments, with errors of one line."""

    def __init__(self, dataclass_types: Sequence[type], section: str) -> None:
        self.section = section
        super().__init__(dataclass_types, allow_abbrev=False, add_help=False)
        # argparse before Python 3.14 takes -1e-4 for the name of a setting.
        self._negative_number_matcher = re.compile(r"-\.?\d")
        for action in self._actions:
            if action.dest == "report_to":  # one or several, which HF's parser takes for one
                action.nargs = "+"

    def error(self, message: str) -> NoReturn:
        """Raise the message as `UserError` instead of printing a page of usage."""
        where = f" in section `{self.section}`" if self.section else ""
        raise UserError(f"{message}{where}; `--help` lists the settings")

    def settings(self) -> list[Action]:
        """Return one action a setting: those of a section leave out what belongs to the whole job.

        A true boolean has a second one, `--no_NAME`, which stands for the same setting.
        """
        hidden = NEVER_IN_A_SECTION if self.section else ()
        by_name = {action.dest: action for action in reversed(self._actions)}
        return [action for name, action in reversed(by_name.items()) if name not in hidden]

    def setting(self, word: str) -> Action:
        """Return the setting that `--name` or `--name=value` sets; an unknown one is an error."""
        name = word.split("=")[0]
        action = self._option_string_actions.get(name)
        if action is None:
            known = [action.dest for action in self.settings()]
            close = difflib.get_close_matches(name.lstrip("-"), known, n=3, cutoff=0.4)
            self.error(f"unknown setting `{name}` (known: {', '.join(close) or 'none like it'})")
        if self.section and action.dest in NEVER_IN_A_SECTION:
            is_token = action.dest == "hub_token"
            whole = "run `hf auth login`" if is_token else f"use `--{action.dest}`"
            raise UserError(
                f"`{self.section}.{action.dest}` cannot be set for one stage; {whole}, for the "
                "whole job"
            )
        return action

    def words(self, values: dict[str, Any]) -> list[str]:
        """Write YAML values as command-line words, so that both pass through the same checks."""
        words: list[str] = []
        for key, value in values.items():
            action = self.setting(f"--{key}")
            if isinstance(value, list) and action.nargs != "+":
                self.error(f"`{key}` is {value}; it must be one value")
            if value is None:
                if action.default is not None:
                    self.error(f"`{key}` has no value; give it one or leave the line out")
            elif isinstance(value, list):
                words += [f"--{key}", *map(str, value)]
            elif isinstance(value, dict):
                words.append(f"--{key}={json.dumps(value)}")
            else:
                words.append(f"--{key}={str(value).lower() if isinstance(value, bool) else value}")
        return words

    def read(self, words: list[str]) -> tuple[dict[str, Any], list[str]]:
        """Return the value of every setting, and the names of those that the words set."""
        given = {self.setting(word).dest for word in words if word.startswith("--")}
        namespace, left_over = self.parse_known_args(words)
        if left_over:
            self.error(f"`{left_over[0]}` belongs to no setting")
        values = vars(namespace)
        for name, value in values.items():
            # Trainer takes it for the home folder, and Path does not.
            if isinstance(value, str) and value.startswith("~/"):
                values[name] = os.path.expanduser(value)
        if values.get("resume_from_checkpoint"):
            self.error(
                "`resume_from_checkpoint` is not needed: the same command goes on from the last "
                "checkpoint of its output_dir; leave it out"
            )
        if isinstance(trackers := values.get("report_to"), list):
            _check_trackers(trackers)
            values["report_to"] = trackers if len(trackers) > 1 else trackers[0]
        return values, sorted(given)


@dataclass
class Stage:
    """The checked settings of one stage, built into dataclasses when the stage starts.

    Building late matters: two `TrainingArguments` with different precision in one process raise
    "AcceleratorState already initialized" when both are built before the first trainer.
    """

    dataclass_types: tuple[type, ...]
    values: dict[str, Any]
    given: list[str]

    def build(self, **overrides: Any) -> list[Any]:
        """Return one instance for each dataclass type; `overrides` replace parsed values.

        Raises `UserError` for values that do not fit together.
        """
        values = self.values | overrides
        if values.get("disable_tqdm", 0) is None:
            # Trainer would go by the log level, and `start` lets only errors of libraries through.
            values["disable_tqdm"] = not shows_progress()
        if values.get("run_name", 0) is None:
            values["run_name"] = tracked_name(values["output_dir"])
        try:
            return [
                dataclass_type(**{f.name: values[f.name] for f in fields(dataclass_type) if f.init})
                for dataclass_type in self.dataclass_types
            ]
        except UserError:
            raise
        except ValueError as error:  # the libraries' own checks
            raise UserError(str(error)) from error

    def resolved(self) -> dict[str, Any]:
        """Return all our settings and the given ones of the libraries.

        But those of the Hub: who repeats a run does not want to publish it again, whoever publishes
        a finished one changes none of its results, and a token is never written down.
        """
        shown = set(self.given)
        for dataclass_type in self.dataclass_types:
            if not dataclass_type.__module__.startswith(LIBRARIES):
                shown |= {f.name for f in fields(dataclass_type)}
        return {
            name: value
            for name, value in sorted(self.values.items())
            if name in shown and value is not None and not name.startswith(OF_THE_HUB)
        }


@dataclass
class Recipe:
    """Parsed settings: stages by section name, '' for the flat ones, and the file they are from."""

    stages: dict[str, Stage]
    config_file: Path

    def __getitem__(self, section: str) -> Stage:
        return self.stages[section]

    def replaced(self, changes: dict[str, dict[str, Any]]) -> "Recipe":
        """Return the same recipe with other values: section -> setting -> value, checked."""
        unknown = [name for name in changes if name not in self.stages]
        if unknown:
            raise UserError(f"`{unknown[0]}` is no section (known: {', '.join(self.stages)})")
        stages = {}
        for name, stage in self.stages.items():
            parser = _RecipeParser(stage.dataclass_types, name)
            required = {a.dest: stage.values[a.dest] for a in parser.settings() if a.required}
            wanted = changes.get(name, {})
            values, given = parser.read(parser.words(required | wanted))
            given = sorted({*given, *wanted})  # a None is no word
            new = {setting: values[setting] for setting in given}
            stages[name] = Stage(
                stage.dataclass_types, stage.values | new, sorted({*stage.given, *given})
            )
        return Recipe(stages, self.config_file)

    def without(self, dataclass_type: type) -> "Recipe":
        """Return the same recipe without the flat settings of one dataclass."""
        flat, names = self.stages[""], {f.name for f in fields(dataclass_type)}
        types = tuple(kind for kind in flat.dataclass_types if kind is not dataclass_type)
        values = {name: value for name, value in flat.values.items() if name not in names}
        stage = Stage(types, values, [name for name in flat.given if name not in names])
        return Recipe(self.stages | {"": stage}, self.config_file)

    def resolved(self) -> dict[str, Any]:
        """Return the settings as a YAML file would hold them; reading it gives them again."""
        sections = {name: stage.resolved() for name, stage in self.stages.items()}
        return sections.pop("", {}) | sections

    def defaults(self) -> dict[str, Any]:
        """Return what `resolved` would have of each setting that nobody gave."""
        sections = {
            name: {
                setting.dest: setting.default
                for setting in _RecipeParser(stage.dataclass_types, name).settings()
            }
            for name, stage in self.stages.items()
        }
        return sections.pop("", {}) | sections

    @property
    def is_demo(self) -> bool:
        """Whether the embedded demo data is used, where a missing earlier stage is made first."""
        return self.stages[""].values["dataset_format"] == "demo"


def parse_recipe(
    sections: dict[str, Sequence[type]],
    recipe_file: str,
    argv: Sequence[str] | None = None,
    first_word: str | None = None,
) -> Recipe:
    """Read `--config FILE.yaml` (or the recipe's demo YAML) and the command line into stages.

    `sections` maps a section name to its dataclasses; the key "" holds flat settings. Settings of a
    section are written `section:` in YAML and `--section.name value` on the command line. Unknown
    keys, abbreviations and bad types raise `UserError` before anything else happens. With
    `first_word` a bare word that stands first is the value of that flat setting.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if first_word and arguments and not arguments[0].startswith("-"):
        arguments[0] = f"--{first_word}={arguments[0]}"
    parsers = {name: _RecipeParser(types, name) for name, types in sections.items()}
    if "--help" in arguments or "-h" in arguments:
        _print_help(parsers, recipe_file)
    config_file, arguments = _take_config(arguments, recipe_file)
    in_file = _values_by_section(read_yaml(config_file), sections)
    for section, name, value in WITHOUT_EFFECT:
        if in_file.get(section, {}).get(name) == value:
            del in_file[section][name]
    on_line = _words_by_section(arguments, sections)
    stages = {
        name: Stage(
            tuple(sections[name]), *parser.read(parser.words(in_file[name]) + on_line[name])
        )
        for name, parser in parsers.items()
    }
    flat = stages[""].values
    if "output_dir" in flat and not flat["output_dir"]:
        raise UserError("`output_dir` is not set; name the folder to write to")
    if not 0 <= flat.get("seed", 0) <= MAX_SEED:
        raise UserError(f"`seed` is {flat['seed']}; it must be from 0 to {MAX_SEED}")
    if output_dir := flat.get("output_dir"):
        _check_output(Path(output_dir), "output_dir")
    if (index_dir := flat.get("index_dir")) and not Path(index_dir).is_dir():
        _check_output(Path(index_dir), "index_dir")
    if output_file := flat.get("output_file"):
        if Path(output_file).is_dir():
            raise UserError(f"`{output_file}` is a folder; name a file in it as --output_file")
        _check_output(Path(output_file).parent, "output_file")
    return Recipe(stages, config_file)


def _check_output(folder: Path, setting: str) -> None:
    """Raise `UserError` where a job could not write, which else shows when it has ended."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        raise UserError(f"`{there}` is a file; name another --{setting} than `{folder}`")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"`{there}` may not be written to; name another --{setting}")


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


def _values_by_section(
    values: dict[str, Any], sections: dict[str, Sequence[type]]
) -> dict[str, dict[str, Any]]:
    groups: dict[str, dict[str, Any]] = {name: {} for name in sections}
    for key, value in values.items():
        if key and key in sections:
            if not isinstance(value, dict | None):
                raise UserError(f"`{key}` is a section; its settings stand indented below it")
            groups[key] = value or {}
        else:
            groups[""][key] = value
    return groups


def _words_by_section(
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


def _print_help(parsers: dict[str, _RecipeParser], recipe_file: str) -> NoReturn:
    write = sys.stdout.write
    name = Path(recipe_file).name
    write(f"{name} [--config FILE.yaml] [--NAME VALUE | --SECTION.NAME VALUE] ...\n")
    for section, parser in parsers.items():
        prefix = f"{section}." if section else ""
        for action in parser.settings():
            text = " ".join(str(action.help or "").split())
            write(f"  --{prefix}{action.dest} (default: {action.default})\n      {text}\n")
    raise SystemExit(0)
