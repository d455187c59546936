"""Settings of the recipes: our dataclasses, and the one parser that reads YAML and command line.

A dataclass owns the name, type and help of a setting; a YAML file in `recipes/` owns the values of
a run; the command line overrides single values.
"""

from .arguments import (
    ARMS,
    REFERENCES,
    ComparisonArguments,
    DataArguments,
    GeneratorArguments,
    HubArguments,
    LoopArguments,
    LoraArguments,
    PromptArguments,
    QueryFileArguments,
    RetrieverArguments,
    RewardArguments,
    RunArguments,
    SamplingArguments,
    SearchArguments,
    SweepArguments,
    WarmUpArguments,
    check_ranges,
)
from .recipe import OF_THE_HUB, WITHOUT_EFFECT, Recipe, parse_recipe, tracked_name
from .yaml_file import as_yaml

__all__ = [
    "ARMS",
    "OF_THE_HUB",
    "REFERENCES",
    "WITHOUT_EFFECT",
    "ComparisonArguments",
    "DataArguments",
    "GeneratorArguments",
    "HubArguments",
    "LoopArguments",
    "LoraArguments",
    "PromptArguments",
    "QueryFileArguments",
    "Recipe",
    "RetrieverArguments",
    "RewardArguments",
    "RunArguments",
    "SamplingArguments",
    "SearchArguments",
    "SweepArguments",
    "WarmUpArguments",
    "as_yaml",
    "check_ranges",
    "parse_recipe",
    "tracked_name",
]
