import importlib.util
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
import yaml
from transformers import TrainingArguments

from agr_trl.config import (
    DataArguments,
    GeneratorArguments,
    LoopArguments,
    PromptArguments,
    QueryFileArguments,
    RetrieverArguments,
    RewardArguments,
    RunArguments,
    SamplingArguments,
    SearchArguments,
    WarmUpArguments,
    as_yaml,
    parse_recipe,
)
from agr_trl.errors import UserError

RECIPES = Path(__file__).parent.parent / "recipes"
YAML_FILES = sorted(RECIPES.rglob("*.yaml"))


@dataclass
class StageArguments:
    rate: float = field(default=1e-3, metadata={"help": "A rate"})
    weights: list[float] | None = field(default=None, metadata={"help": "Some weights"})
    kind: Literal["one", "two"] = field(default="one", metadata={"help": "A choice"})
    switch: bool = field(default=True, metadata={"help": "A switch"})
    limit: int | None = field(default=None, metadata={"help": "A limit"})


@dataclass
class SeedArguments:
    seed: int = 0
    output_dir: str | None = None


SECTIONS = {"": (RunArguments, DataArguments), "stage": (StageArguments, SeedArguments)}


def parse(folder, text, *argv, sections=SECTIONS):
    file = folder / "given.yaml"
    file.write_text(text, encoding="utf-8")
    return parse_recipe(sections, str(folder / "job.py"), ["--config", str(file), *argv])


def stage_values(recipe):
    return recipe["stage"].build()[0]


def test_the_command_line_overrides_the_yaml_which_overrides_the_default(tmp_path):
    text = "output_dir: out\nstage:\n  rate: 1e-4\n  kind: two\n"
    recipe = parse(tmp_path, text, "--stage.kind", "one", "--seed=3")
    stage = stage_values(recipe)
    assert (stage.rate, stage.kind, stage.switch) == (1e-4, "one", True)
    run, data = recipe[""].build()
    assert (run.output_dir, run.seed, data.dataset_format) == ("out", 3, "demo")
    assert recipe.is_demo and recipe.config_file == tmp_path / "given.yaml"
    assert recipe["stage"].build(output_dir="elsewhere", seed=9)[1] == SeedArguments(9, "elsewhere")


def test_without_config_the_demo_yaml_of_the_recipe_is_read(tmp_path):
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "job.yaml").write_text("output_dir: runs/demo")
    recipe = parse_recipe(SECTIONS, str(tmp_path / "job.py"), [])
    assert recipe[""].values["output_dir"] == "runs/demo"
    config = tmp_path / "other.yaml"
    config.write_text("output_dir: other")
    recipe = parse_recipe(SECTIONS, str(tmp_path / "job.py"), [f"--config={config}"])
    assert recipe[""].values["output_dir"] == "other"


@pytest.mark.parametrize(
    ("line", "argv", "name", "value"),
    [
        ("rate: 1e-4", [], "rate", 1e-4),  # YAML 1.1 reads 1e-4 as text
        ("rate: -.5", [], "rate", -0.5),
        ("weights: [1.0, -1e-4, 0]", [], "weights", [1.0, -1e-4, 0.0]),
        ("weights: 2", [], "weights", [2.0]),
        ("", ["--stage.weights", "1", "-1e-4"], "weights", [1.0, -1e-4]),
        ("weights: [1, 2]", ["--stage.weights", "3"], "weights", [3.0]),
        ("switch: false", [], "switch", False),
        ("switch: no", [], "switch", False),
        ("switch: false", ["--stage.switch"], "switch", True),
        ("", ["--stage.no_switch"], "switch", False),
        ("", ["--stage.switch", "false"], "switch", False),
        ("limit:", [], "limit", None),
        ("", ["--stage.limit=5"], "limit", 5),
    ],
)
def test_values_of_every_type(line, argv, name, value, tmp_path):
    recipe = parse(tmp_path, f"output_dir: out\nstage:\n  {line}\n", *argv)
    assert getattr(stage_values(recipe), name) == value


def test_a_dictionary_goes_to_the_library_that_reads_it(tmp_path):
    text = "output_dir: out\nlr_scheduler_kwargs: {num_cycles: 2}\nuse_cpu: true\n"
    sections = {"": (DataArguments, TrainingArguments)}
    recipe = parse(tmp_path, text, sections=sections)
    assert recipe[""].build()[1].lr_scheduler_kwargs == {"num_cycles": 2}
    argv = ["--lr_scheduler_kwargs", json.dumps({"num_cycles": 3})]
    recipe = parse(tmp_path, text, *argv, sections=sections)
    assert recipe[""].build()[1].lr_scheduler_kwargs == {"num_cycles": 3}


@pytest.mark.parametrize(
    ("text", "argv", "message"),
    [
        ("outputdir: out", [], "unknown setting `--outputdir` (known: output_dir)"),
        ("output_dir: out\nnothing:", [], "unknown setting `--nothing`"),
        ("output_dir: out\nstage: {rat: 1}", [], "`--rat` (known: rate) in section `stage`"),
        ("output_dir: out\nstage: 3", [], "`stage` is a section"),
        ("output_dir: out\nother: {rate: 1}", [], "unknown setting `--other`"),
        ("output_dir: out\nrate: 1", [], "unknown setting `--rate`"),
        ("output_dir: out", ["--see", "1"], "unknown setting `--see` (known: seed"),
        ("output_dir: out", ["--stage.rat", "1"], "unknown setting `--rat`"),
        ("output_dir: out", ["--other.rate", "1"], "unknown setting `--other.rate`"),
        ("output_dir: out", ["demo"], "`demo` is not a setting"),
        ("output_dir: out", ["--seed", "1", "2"], "`2` belongs to no setting"),
        ("output_dir: out", ["--config"], "`--config` needs a YAML file"),
        ("output_dir: out\nseed: one", [], "invalid int value: 'one'"),
        ("output_dir: out\nseed: [1]", [], "`seed` is [1]; it must be one value"),
        ("output_dir: out\nseed: {a: 1}", [], "invalid int value"),
        ("output_dir: out\nseed:", [], "`seed` has no value"),
        ("output_dir: out\nstage: {rate: fast}", [], "invalid float value: 'fast'"),
        ("output_dir: out\nstage: {weights: []}", [], "expected at least one argument"),
        ("output_dir: out\nstage: {kind: three}", [], "invalid choice: 'three'"),
        ("output_dir: out\nstage: {switch: maybe}", [], "got maybe"),
        ("output_dir: out\nstage: {seed: 1}", [], "use `--seed`, for the whole job"),
        ("output_dir: out", ["--stage.output-dir", "x"], "`stage.output_dir` cannot be set"),
        ("seed: 1", [], "required: --output_dir"),
        ("- a", [], "holds a list"),
        ("a: [", [], "is not valid YAML"),
        ("output_dir: &a [*a]", [], "a value holds an alias of itself"),
        ("seed: 1\noutput_dir: out\nseed: 2", [], "`seed` stands in line 1 and 3"),
        ("output_dir: out\nstage: {rate: 1}\nstage: {rate: 2}", [], "`stage` stands in line 2"),
        ("output_dir: out\nstage:\n  rate: 1\n  rate: 2", [], "`rate` stands in line 3 and 4"),
        ("output_dir: out\nseed: -1", [], "`seed` is -1; it must be from 0 to 2147483647"),
        ("output_dir: out", ["--seed=2147483648"], "`seed` is 2147483648; it must be from 0"),
    ],
)
def test_wrong_settings_are_one_line(text, argv, message, tmp_path, capsys):
    with pytest.raises(UserError) as caught:
        parse(tmp_path, text, *argv)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert capsys.readouterr() == ("", "")


def test_a_yaml_may_use_anchors_within_bounds(tmp_path):
    recipe = parse(tmp_path, "output_dir: &name out\ndataset_path: *name")
    assert recipe[""].values["dataset_path"] == "out"
    # Ten times a list of 10,000 values, and the lists themselves.
    text = f"first: &first [{', '.join('1' * 10_000)}]\nall: [{', '.join(['*first'] * 9)}]"
    with pytest.raises(UserError, match="stands for more than 100,000 values"):
        parse(tmp_path, text)


def test_what_is_written_has_no_alias():
    weights = [1.0, 0.0]
    text = as_yaml({"first": weights, "second": {"third": weights}})
    assert "&" not in text and "*" not in text
    assert yaml.safe_load(text) == {"first": weights, "second": {"third": weights}}


def test_a_missing_config_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"gone\.yaml` does not exist"):
        parse_recipe(SECTIONS, str(tmp_path / "job.py"), ["--config", "gone.yaml"])


def test_help_lists_the_settings_and_exits_with_0(tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        parse_recipe(SECTIONS, str(tmp_path / "job.py"), ["--help"])
    assert caught.value.code == 0
    printed = capsys.readouterr().out
    assert printed.startswith("job.py [--config FILE.yaml]")
    assert "--stage.rate (default: 0.001)\n      A rate\n" in printed
    assert printed.count("--stage.switch ") == printed.count("--seed ") == 1
    assert "--stage.seed" not in printed and "no_" not in printed


def test_a_home_folder_is_the_same_for_us_and_the_libraries(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    sections = {"": (DataArguments, TrainingArguments)}
    recipe = parse(tmp_path, "output_dir: ~/run", "--dataset_path=~/data", sections=sections)
    data_args, args = recipe[""].build()
    assert recipe[""].values["output_dir"] == args.output_dir == str(tmp_path / "run")
    assert data_args.dataset_path == str(tmp_path / "data")
    assert recipe.replaced({"": {"output_dir": "~/other"}})[""].values["output_dir"] == (
        str(tmp_path / "other")
    )


def test_checkpoints_are_found_and_not_named(tmp_path):
    sections = {"": (TrainingArguments,)}
    with pytest.raises(UserError, match="`resume_from_checkpoint` is not needed"):
        parse(tmp_path, "output_dir: out", "--resume_from_checkpoint=x", sections=sections)


@dataclass
class FileArguments:
    output_file: str | None = None
    index_dir: str | None = None


def test_where_a_job_cannot_write_is_told_at_once(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    for setting, value, message in (
        ("output_file", "folder", "is a folder; name a file in it as --output_file"),
        ("output_file", "file/x.json", "is a file; name another --output_file"),
        ("index_dir", "file", "is a file; name another --index_dir"),
    ):
        with pytest.raises(UserError, match=message):
            parse(tmp_path, f"{setting}: {tmp_path / value}", sections={"": (FileArguments,)})
    text = f"output_file: {tmp_path}/new/x.json\nindex_dir: {tmp_path}/folder"
    parse(tmp_path, text, sections={"": (FileArguments,)})


def test_a_stage_without_a_folder_is_named(tmp_path):
    with pytest.raises(UserError, match="`output_dir` is not set; name the folder"):
        parse(tmp_path, "max_steps: 1", sections={"": (DataArguments, TrainingArguments)})


def test_hub_settings_are_in_no_record_of_a_stage(tmp_path):
    argv = ["--push_to_hub", "--hub_model_id=user/x", "--hub_token=hf_x", "--learning_rate=1e-5"]
    recipe = parse(tmp_path, "output_dir: out", *argv, sections={"": (TrainingArguments,)})
    assert recipe.resolved() == {"learning_rate": 1e-5, "output_dir": "out"}


def test_resolved_settings_read_again_are_the_same(tmp_path):
    sections = {"": (RunArguments, DataArguments), "stage": (StageArguments, TrainingArguments)}
    text = "output_dir: out\nstage:\n  rate: 1e-5\n  weights: [1, 0.5]\n  save_strategy: 'no'\n"
    argv = ["--stage.no_switch", "--stage.learning-rate", "2e-5", "--stage.no_log_on_each_node"]
    first = parse(tmp_path, text, *argv, sections=sections)
    resolved = first.resolved()
    assert resolved["stage"] == {
        "kind": "one",
        "learning_rate": 2e-5,
        "log_on_each_node": False,
        "rate": 1e-5,
        "save_strategy": "no",
        "switch": False,
        "weights": [1.0, 0.5],
    }
    assert resolved["dataset_format"] == "demo" and "dataset_path" not in resolved
    again = parse(tmp_path, yaml.safe_dump(resolved), sections=sections)
    assert again.resolved() == resolved
    assert {name: stage.values for name, stage in again.stages.items()} == {
        name: stage.values for name, stage in first.stages.items()
    }


def test_what_a_library_refuses_is_a_user_error(tmp_path):
    sections = {"": (DataArguments, TrainingArguments)}
    text = "output_dir: out\nuse_cpu: true\neval_strategy: steps\nlogging_steps: 0\n"
    with pytest.raises(UserError, match="eval"):
        parse(tmp_path, text, sections=sections)[""].build()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: RewardArguments(loss_cap_nats=0), "`loss_cap_nats` is 0; it must be at least"),
        (lambda: RewardArguments(band_low=0), "`band_low` is 0"),
        (lambda: RewardArguments(band_low=0.6, band_high=0.4), "from 0.6 to 0.99"),
        (lambda: RewardArguments(min_relevance=1.5), "from 0 to 1"),
        (lambda: SamplingArguments(sampling_temperature=0), "sampling_temperature"),
        (lambda: LoopArguments(sampling_temperature=0), "sampling_temperature"),
        (lambda: LoopArguments(max_synthetic_share=1.1), "max_synthetic_share"),
        (lambda: LoopArguments(gold_repeats_per_round=0), "gold_repeats_per_round"),
        (lambda: RetrieverArguments(negative_margin=1), "negative_margin"),
        (lambda: WarmUpArguments(gold_repeats=-1), "gold_repeats"),
        (lambda: WarmUpArguments(max_prompt_tokens=0), "`max_prompt_tokens` is 0; it must be at"),
        (lambda: PromptArguments(max_prompt_tokens=-1), "max_prompt_tokens"),
        (lambda: QueryFileArguments(max_prompt_tokens=-1), "max_prompt_tokens"),
        (lambda: QueryFileArguments(queries_per_product=0), "queries_per_product"),
        (lambda: SearchArguments(top_k=0), "`top_k` is 0; it must be at least 1"),
        (lambda: SearchArguments(top_k=-1), "`top_k` is -1"),
        (lambda: SearchArguments(candidates=0), "`candidates` is 0"),
        (lambda: SearchArguments(blend_weight=1.1), "from 0 to 1"),
    ],
)
def test_values_out_of_range_are_named(build, message):
    with pytest.raises(UserError, match=message):
        build()
    assert LoopArguments(max_synthetic_share=1, rounds=0).rounds == 0
    assert WarmUpArguments().max_prompt_tokens == GeneratorArguments().max_prompt_tokens


def load_recipe(name):
    spec = importlib.util.spec_from_file_location(f"recipe_{name}", RECIPES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_every_recipe_setting_is_found():
    assert len(YAML_FILES) == 21
    assert all(len(file.relative_to(RECIPES).parts) == 2 for file in YAML_FILES)
    assert {f"{file.stem}.py" for file in YAML_FILES} <= {f.name for f in RECIPES.glob("*.py")}


@pytest.mark.parametrize("file", YAML_FILES, ids=lambda file: f"{file.parent.name}-{file.stem}")
def test_every_recipe_setting_parses(file):
    module = load_recipe(file.stem)
    recipe = parse_recipe(module.SECTIONS, module.__file__, ["--config", str(file)])
    assert recipe.resolved()
    for stage in recipe.stages.values():
        if not any(issubclass(t, TrainingArguments) for t in stage.dataclass_types):
            stage.build()  # TrainingArguments check the machine too, such as bf16
