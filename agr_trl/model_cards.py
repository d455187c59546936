"""Cards of what a run publishes: its retriever, its generator, its accepted queries, its app.

A card cannot hold inline SVG, so its training curves are a file beside it, `RunRecord.curves`.
A card's numbers are read from the run's own files. Every text that comes from data is escaped, so
that no product or query can change how a card reads; machine paths and Hub settings are left out.
"""

import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from huggingface_hub import DatasetCardData, EvalResult, ModelCardData, SpaceCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from markupsafe import Markup

from agr_trl import report_text
from agr_trl.charts import Chart, round_charts, training_charts
from agr_trl.config import PromptArguments, SamplingArguments, as_yaml
from agr_trl.errors import UserError
from agr_trl.files import read_json
from agr_trl.loading import PACKAGED_MINILM
from agr_trl.query_files import read_queries
from agr_trl.report import (
    before_and_after,
    picture,
    read_if_there,
    read_round,
    round_rows,
    template_environment,
)
from agr_trl.report_text import DEV_WARNING, metric_name, visible

RETRIEVER_KEYS = (
    *("pr_auc", "roc_auc", "f1", "log_loss"),
    *("judged/ndcg@10", "rerank/ndcg@10", "blend/ndcg@10"),
)
TABLE_KEYS = ("pr_auc", "roc_auc", "judged/ndcg@10", "rerank/ndcg@10", "blend/ndcg@10")
GENERATOR_KEYS = {
    "acceptance_rate": "share of queries accepted",
    "mean_probability": "mean p of the {judge}",
    "mean_relevance": "mean relevance S",
    "distinct_2": "distinct pairs of words",
}
LESSONS = {  # what R learns from after round 0, by `query_source`; all but the first are controls
    "adversarial": "queries that a generator wrote against it",
    "warm_up": "queries of a generator that was never trained against it",
    "random_crops": "words cut by chance from titles of products",
    "none": "the judged pairs again and nothing else",
}
BASE_MODELS = {"retriever": "retriever_name_or_path", "warm_up": "generator_name_or_path"}
SAMPLED_QUERIES = 8
CURVES_FILE = "training_curves.svg"
PANEL, PICTURE_HEIGHT = 320, 272  # of the training curves, in pixels
_MARKUP = re.compile(r"[\\`*_{}\[\]<>#+!|~&:@$^\"]|(?<=www)\.", re.IGNORECASE)


@dataclass
class RunRecord:
    """What the cards say of a run: its numbers, settings and accepted queries.

    `config` holds no machine path and no Hub setting; `base_models` are the names on the Hub, by
    section, of the models that the run began with. A single stage has no rounds.
    """

    folder: Path
    metrics: Mapping[str, Any]
    config: dict[str, Any] = field(default_factory=dict)
    commit: str = "unknown"
    base_models: dict[str, str | None] = field(default_factory=dict)

    @property
    def dataset_name(self) -> str:
        """Return the data set's folder name, else its format."""
        return str(self.config.get("dataset_path") or self.config.get("dataset_format") or "own")

    @property
    def best_round(self) -> int:
        """Return the round whose models were exported."""
        return int(self.metrics.get("best_round", 0))

    @property
    def query_source(self) -> str:
        """Return who wrote the queries of the rounds from 1 on."""
        return str(self.config.get("query_source", "adversarial"))

    @property
    def is_control(self) -> bool:
        """Whether no generator was trained against the retriever."""
        return self.query_source != "adversarial"

    @property
    def lesson(self) -> str:
        """Return in words what the retriever learned from after round 0."""
        return LESSONS[self.query_source]

    @property
    def judge(self) -> str:
        """Return in words whose probability stands beside a query that was written."""
        return "best retriever so far" if self.is_control else "attacked retriever"

    def generator_wrote(self, number: int) -> bool:
        """Whether a round's queries are its generator's; round 0's are the warmed-up one's."""
        return not number or self.query_source in ("adversarial", "warm_up")

    def max_prompt_tokens(self, number: int) -> int:
        """Return how much of a product a round's generator reads: a control's is the warm-up's."""
        stage = "generator" if number and not self.is_control else "warm_up"
        settings = self.config.get(stage) or {}
        return int(settings.get("max_prompt_tokens", PromptArguments.max_prompt_tokens))

    def round_folder(self, number: int) -> Path:
        """Return the folder of a round."""
        return self.folder / f"round_{number:02d}"

    def kept_rounds(self) -> list[int]:
        """Return the rounds that were kept and are here, the exported one last."""
        kept = [this["round"] for this in self.metrics["rounds"] if this["kept"]]
        return [
            n for n in kept if n == self.best_round or (self.round_folder(n) / "retriever").is_dir()
        ]

    def kept_generators(self) -> list[int]:
        """Return the kept rounds whose generator is here too: a control's is the warm-up's."""
        return [
            n
            for n in self.kept_rounds()
            if not n
            or n == self.best_round
            or self.is_control
            or (self.round_folder(n) / "generator").is_dir()  # else `kept_models` has removed it
        ]

    def measured(self, number: int) -> dict[str, Mapping[str, Any]]:
        """Return split -> metrics of a round's retriever; test is known for first and best."""
        if not self.metrics.get("rounds"):
            return {"dev": self.metrics.get("dev") or {}}
        splits = {"dev": self.metrics["rounds"][number]["dev"]}
        name = "adversarial" if number == self.best_round else "supervised" if not number else None
        if name and self.metrics.get("test"):
            splits = {"test": self.metrics["test"][name]} | splits
        return splits

    @cached_property
    def queries(self) -> pd.DataFrame:
        """The accepted queries of all rounds; `round_kept` says whether R was kept."""
        parts = []
        for this in self.metrics["rounds"]:
            file = self.round_folder(this["round"]) / "queries.parquet"
            if file.is_file():
                table = read_queries(file)
                parts.append(table[table["accepted"]].assign(round_kept=this["kept"]))
        if not parts:
            return pd.DataFrame()
        return pd.concat(parts, ignore_index=True).drop(
            columns=["accepted", "reason", "product_index", "prompt"], errors="ignore"
        )

    @cached_property
    def curves(self) -> dict[str, str]:
        """Pictures as SVG: `retriever` over rounds, `generator` over steps; only what was logged.

        A single stage keeps its log beside the model folder.
        """
        if self.metrics.get("rounds"):
            rounds = round_rows(self.metrics)
            logs = {row["number"]: read_round(self.folder, row)[0] for row in rounds}
            charts = {
                "retriever": round_charts(self.metrics["dev_metric"], rounds),
                "generator": training_charts(logs),
            }
        else:
            log = read_if_there(self.folder.parent / "generator_log.json")
            steps = [replace(chart, borders=[]) for chart in training_charts({1: log})]
            charts = {"generator": steps}
        return {name: curves_picture(panels) for name, panels in charts.items() if panels}


def read_run(folder: Path) -> RunRecord:
    """Read a finished run folder. Raises `UserError` where the run has not ended."""
    if not (folder / "metrics.json").is_file():
        raise UserError(
            f"`{folder}` has no metrics.json; run recipes/train_adversarial.py to its end first"
        )
    metrics = read_json(folder / "metrics.json")
    if not metrics.get("rounds"):
        raise UserError(f"`{folder}` is no run of recipes/train_adversarial.py; give its folder")
    for name in ("retriever", "generator"):
        if not (folder / name / "config.json").is_file():
            raise UserError(
                f"`{folder / name}` holds no model; run the training again to export it"
            )
    settings = read_if_there(folder / "config.yaml")
    # Before paths are cut: the last part of one looks like a name on the Hub.
    base_models = {
        section: hub_name((settings.get(section) or {}).get(name))
        for section, name in BASE_MODELS.items()
    }
    commit = str(read_if_there(folder / "run.json").get("commit") or "unknown")
    return RunRecord(folder, metrics, public_settings(settings), commit, base_models)


def public_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings without Hub settings, and with the last part of machine paths alone."""
    return {
        name: _public(value)
        for name, value in settings.items()
        if not (name.startswith("hub_") or "token" in name.split("_"))
    }


def _public(value: Any) -> Any:
    if isinstance(value, Mapping):
        return public_settings(value)
    if isinstance(value, list):
        return [_public(part) for part in value]
    is_path = isinstance(value, str) and re.match(r"[/\\~]|\.\.|[A-Za-z]:[/\\]", value)
    return re.split(r"[/\\]", value.rstrip("/\\"))[-1] if is_path else value


# --- The three cards ----------------------------------------------------------------------------


def retriever_card(repo_id: str, run: RunRecord, number: int, licence: str) -> str:
    """Return the README.md of a round's retriever."""
    data = ModelCardData(
        license=licence,
        library_name="transformers",
        pipeline_tag="text-ranking",
        base_model=run.base_models.get("retriever"),
        tags=["cross-encoder", "product-search", "agr_trl"],
        datasets=_datasets(repo_id, run),
        model_name=repo_id.split("/")[-1],
        eval_results=[
            _eval_result(run, split, key, values[key])
            for split, values in run.measured(number).items()
            for key in RETRIEVER_KEYS
            if _is_number(values.get(key))
        ]
        or None,
    )
    blend_weight = run.measured(number)["dev"].get("blend_weight")
    curves = CURVES_FILE if "retriever" in run.curves else None
    return _card(
        *(data, "retriever_card.md.j2", repo_id, run, number),
        blend_weight=blend_weight,
        curves=curves,
    )


def generator_card(
    repo_id: str, run: RunRecord, number: int, licence: str, base: tuple[str, str] | None = None
) -> str:
    """Return the README.md of a round's generator; `base` is an adapter's model and revision."""
    rounds = run.metrics.get("rounds")
    wrote = run.generator_wrote(number)
    queries = rounds[number].get("queries") or {} if rounds and wrote else {}
    data = ModelCardData(
        license=licence,
        library_name="peft" if base else "transformers",
        pipeline_tag="text2text-generation",
        base_model=run.base_models.get("warm_up"),
        tags=["query-generation", "product-search", "agr_trl", *(["lora"] if base else [])],
        datasets=_datasets(repo_id, run),
        model_name=repo_id.split("/")[-1],
        eval_results=[
            _eval_result(run, None, key, queries[key], words.format(judge=run.judge))
            for key, words in GENERATOR_KEYS.items()
            if _is_number(queries.get(key))
        ]
        or None,
    )
    return _card(
        data,
        "generator_card.md.j2",
        repo_id,
        run,
        number,
        base=base and tuple(map(Markup, base)),
        curves=CURVES_FILE if "generator" in run.curves else None,
        max_prompt_tokens=run.max_prompt_tokens(number),
        max_query_tokens=int(
            run.config.get("max_query_tokens", SamplingArguments.max_query_tokens)
        ),
    )


def queries_card(repo_id: str, run: RunRecord, licence: str) -> str:
    """Return the README.md of the data set of accepted queries."""
    data = DatasetCardData(
        license=licence,
        task_categories=["text-ranking"],
        tags=["query-generation", "product-search", "synthetic", "agr_trl"],
        pretty_name=f"Queries written for {run.dataset_name}",
        configs=[{"config_name": "default", "data_files": "data/train.parquet"}],
    )
    return _card(data, "queries_card.md.j2", repo_id, run, run.best_round)


def space_card(repo_id: str, run: RunRecord, licence: str, gradio_version: str) -> str:
    """Return the README.md of a Space, whose head tells the Hub how to start it."""
    data = SpaceCardData(
        title=repo_id.split("/")[-1],
        sdk="gradio",
        sdk_version=gradio_version,
        python_version=".".join(platform.python_version_tuple()[:2]),  # else an older one
        app_file="app.py",
        license=licence,
        tags=["product-search", "cross-encoder", "agr_trl"],
    )
    return _card(data, "space_card.md.j2", repo_id, run, run.best_round)


def curves_picture(charts: Sequence[Chart]) -> str:
    """Return charts side by side as one SVG file that needs no style from around it."""
    return picture("curves.svg.j2", charts, PANEL, PICTURE_HEIGHT)


def hub_name(name_or_path: str | None) -> str | None:
    """Return a model's name on the Hub; None for one that was built or lies on this machine."""
    if name_or_path == PACKAGED_MINILM:
        return "sentence-transformers/all-MiniLM-L6-v2"
    if not name_or_path or name_or_path == "new" or name_or_path.startswith(("runs/", ".", "/")):
        return None
    try:
        validate_repo_id(name_or_path)
    except HFValidationError:
        return None
    return None if Path(name_or_path).exists() else name_or_path


def markdown_text(text: str, length: int = 160) -> Markup:
    """Return a text as one line of Markdown that shows it as it is, cut at a length."""
    line = " ".join(visible(str(text)).split())
    line = line if len(line) <= length else f"{line[: length - 1]}…"
    return Markup(_MARKUP.sub(lambda found: f"&#{ord(found[0])};", line))


def fenced(text: str, language: str = "") -> Markup:
    """Return a code block whose fence is longer than any run of backticks inside."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    lines = "\n".join(visible(line) for line in text.rstrip().splitlines())
    return Markup(f"{fence}{language}\n{lines}\n{fence}")


def _card(
    data: ModelCardData | DatasetCardData | SpaceCardData,
    template: str,
    repo_id: str,
    run: RunRecord,
    number: int,
    **values: Any,
) -> str:
    body = (
        _environment()
        .get_template(template)
        .render(
            repo_id=Markup(repo_id),
            run=run,
            number=number,
            revision=Markup(f', revision="round-{number}"' if number != run.best_round else ""),
            rounds=_named(run, round_rows(run.metrics)) if run.metrics.get("rounds") else [],
            tables=_tables(run),
            samples=_samples(run, number),
            config=fenced(as_yaml(run.config), "yaml"),
            relatives={
                name: Markup(repo_id.rsplit("-", 1)[0] + f"-{name}")
                for name in ("retriever", "generator", "queries")
            },
            **values,
        )
    )
    return f"---\n{data.to_yaml()}\n---\n\n{body.rstrip()}\n"


def _environment() -> jinja2.Environment:
    environment = template_environment(
        # Every text that is put into a card is escaped here, for Markdown; what macros give
        # is Markup already.
        finalize=lambda value: value if isinstance(value, Markup) else markdown_text(value)
    )
    environment.filters |= {
        "number": report_text.number,
        "percent": report_text.percent,
        "count": report_text.count,
        "metric": _metric_markup,
    }
    environment.globals |= {"dev_warning": DEV_WARNING}
    return environment


def _metric_markup(key: str) -> Markup:
    return Markup(metric_name(key))  # our own words


def _tables(run: RunRecord) -> list[dict[str, Any]]:
    """Return a table of before and after for each split: split, keys, rows of name and values."""
    tables = []
    for split in ("test", "dev"):
        if split == "test" and not run.metrics.get("test"):
            continue
        if run.metrics.get("rounds"):
            answer = _named(run, before_and_after(run.metrics, split))
            rows = [(row["name"], row["metrics"]) for row in answer]
        else:
            rows = [("this model", run.metrics.get("dev") or {})]
        keys = [key for key in TABLE_KEYS if any(_is_number(m.get(key)) for _, m in rows)]
        if keys:
            tables.append({"split": split, "columns": keys, "rows": rows})
    return tables


def _named(run: RunRecord, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the report's rows of rounds; a control's are not called adversarial."""
    if not run.is_control:
        return rows
    return [row | {"name": row["name"].replace("adversarial", "control")} for row in rows]


def _samples(run: RunRecord, number: int) -> list[dict[str, Any]]:
    """Return some accepted queries of a round, drawn with a fixed seed."""
    if not run.metrics.get("rounds"):
        return []
    queries = run.queries
    if queries.empty:
        return []
    queries = queries[queries["round"] == number]
    chosen = queries.sample(min(SAMPLED_QUERIES, len(queries)), random_state=0)
    rows: list[dict[str, Any]] = chosen.to_dict("records")
    return rows


def _eval_result(
    run: RunRecord, split: str | None, key: str, value: float, name: str | None = None
) -> EvalResult:
    """Return a number for `model-index`, rounded to what is worth comparing."""
    is_ranking = "/" in key
    task = "text-ranking" if is_ranking else "text-classification"
    return EvalResult(
        task_type="text2text-generation" if name else task,
        dataset_type=re.sub(r"[^\w.-]+", "-", run.dataset_name).strip("-").lower() or "own",
        dataset_name=run.dataset_name,
        dataset_split=split,
        metric_type=key.rpartition("/")[2],
        metric_name=name or metric_name(key),
        metric_value=round(float(value), 4),
    )


def _datasets(repo_id: str, run: RunRecord) -> list[str] | None:
    if not run.metrics.get("rounds") or run.query_source == "none":
        return None
    return [repo_id.rsplit("-", 1)[0] + "-queries"]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and value == value
