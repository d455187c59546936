"""Settings in YAML: read as strictly as a user would wish, and written."""

import json
from pathlib import Path
from typing import Any

import yaml

from agr_trl.errors import UserError

# What PyYAML raises for files that it cannot read: its own errors, those of Python's conversions
# (2001-13-45 is no date, too long an integer), and of a nesting that is too deep.
MAX_NESTING = 50  # of YAML, whose parser takes time by the square of it
MAX_VALUES = 100_000  # of YAML, those behind aliases counted wherever they are used
YAML_ERRORS = (yaml.YAMLError, ValueError, AttributeError, LookupError, TypeError, RecursionError)


def read_yaml(config_file: Path) -> dict[str, Any]:
    try:
        text = config_file.read_text(encoding="utf-8")
        depth = 0
        for event in yaml.parse(text, yaml.SafeLoader):
            depth += isinstance(event, yaml.CollectionStartEvent)
            depth -= isinstance(event, yaml.CollectionEndEvent)
            if depth > MAX_NESTING:
                raise ValueError(f"it is nested more than {MAX_NESTING} times")
        document = yaml.compose(text, yaml.SafeLoader)
        if _count_values(document, {}) > MAX_VALUES:
            raise ValueError(f"it stands for more than {MAX_VALUES:,} values")
        _refuse_repeated_keys(document, set())
        values = yaml.safe_load(text)
        json.dumps(values, default=str)  # a number may have more digits than Python writes
    except YAML_ERRORS as error:
        problem = " ".join(str(error).split())
        raise UserError(f"`{config_file}` is not valid YAML: {problem}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UserError(
            f"`{config_file}` holds a {type(values).__name__}; it must hold `key: value` lines"
        )
    return values


def _count_values(node: yaml.Node | None, counts: dict[int, int]) -> int:
    """Return how many values a document stands for: a few aliases of aliases can fill any memory.

    `counts` remembers the nodes that were seen, 0 while inside. Raises `ValueError` for a value
    that holds itself.
    """
    if id(node) not in counts:
        counts[id(node)] = 0
        inside: list[Any] = node.value if isinstance(node, yaml.CollectionNode) else []
        parts = [part for entry in inside for part in (entry if type(entry) is tuple else [entry])]
        counts[id(node)] = 1 + sum(_count_values(part, counts) for part in parts)
    elif not counts[id(node)]:
        raise ValueError("a value holds an alias of itself")
    return counts[id(node)]


def _refuse_repeated_keys(node: yaml.Node | None, seen: set[int]) -> None:
    """Raise `ValueError` for a key that stands twice, of which YAML drops the first."""
    if not isinstance(node, yaml.CollectionNode) or id(node) in seen:
        return
    seen.add(id(node))
    lines: dict[str, int] = {}
    for entry in node.value:
        key, value = entry if isinstance(node, yaml.MappingNode) else (None, entry)
        _refuse_repeated_keys(value, seen)
        if isinstance(key, yaml.ScalarNode) and key.value != "<<":
            line = key.start_mark.line + 1
            if key.value in lines:
                raise ValueError(f"`{key.value}` stands in line {lines[key.value]} and {line}")
            lines[key.value] = line


def as_yaml(values: dict[str, Any]) -> str:
    """Return settings as YAML, in their order; a list that stands twice is written twice."""
    return yaml.dump(values, Dumper=_WithoutAliases, sort_keys=False, allow_unicode=True)


class _WithoutAliases(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True
