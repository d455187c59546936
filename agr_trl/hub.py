"""Publish finished models, and what a run's generator wrote, on the Hugging Face Hub.

A repository's branch `main` gets the exported model in one commit. Models of earlier rounds lie on
branches of their own, `rounds/0` and so on. Each round that was kept has a tag, such as `round-0`.
Everything is read from the local files and nothing is written to them.
"""

import json
import logging
import shlex
import tempfile
import tomllib
from collections.abc import Collection
from fnmatch import fnmatch
from importlib.metadata import version
from pathlib import Path

from huggingface_hub import HfApi, get_token
from transformers import TrainingArguments

from agr_trl.adversarial import QUERIES_FILE, AdversarialRun
from agr_trl.app import open_run, require_gradio, table_contents
from agr_trl.config import HubArguments, as_yaml
from agr_trl.errors import UserError
from agr_trl.files import read_json
from agr_trl.generator import ADAPTER_CONFIG, recorded_base, save_merged_generator
from agr_trl.hub_repository import (
    Files,
    Repository,
    check_name,
    one_line_errors,
    retried,
)
from agr_trl.loading import PACKAGED_MINILM
from agr_trl.model_cards import (
    CURVES_FILE,
    RunRecord,
    generator_card,
    hub_name,
    queries_card,
    read_run,
    retriever_card,
    space_card,
)
from agr_trl.runtime import is_main_process

logger = logging.getLogger(__name__)

# A Trainer's own pickle holds the Hub token, so it never leaves this machine. README.md is what
# PEFT and TRL write for an adapter, machine paths included; ours replaces it.
NEVER_PUSHED = (
    *("training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state*.pth", "trainer_state.json"),
    *("README.md", ".*", "*.tmp"),
)
OF_TRAINERS_PUSHES = ("hub_strategy", "hub_always_push", "hub_revision")
PACKAGE_ENDINGS = (".py", ".j2", ".css")  # of what a Space holds of this package
MODEL_ENDINGS = (".json", ".txt", ".safetensors", ".model")  # and of a relevance model's folder
SPACE_APP = """from pathlib import Path

from agr_trl.app import serve
from agr_trl.runtime import run_recipe, start


def main() -> None:
    start(seed=0)
    serve(Path("run"))


run_recipe(main)
"""


# --- What recipes call --------------------------------------------------------------------------


def take_hub_settings(args: TrainingArguments | HubArguments) -> str | None:
    """Return the token to push with where `push_to_hub` was asked for; the Trainer shall not push.

    Trainer would push every checkpoint with its `training_args.bin`, a pickle in which a
    `hub_token` stands; so the token is taken out of the settings, and the recipes push what they
    have made once, at the end. Raises `UserError` when no repository, or an impossible one, is
    named, nobody is logged in, or what only Trainer's pushes know is asked for.
    """
    token = None
    if isinstance(args, TrainingArguments):
        token, args.hub_token = args.hub_token, None
    if not args.push_to_hub:
        return None
    if isinstance(args, TrainingArguments):
        for name in OF_TRAINERS_PUSHES:
            if getattr(args, name) != TrainingArguments.__dataclass_fields__[name].default:
                raise UserError(
                    f"`{name}` is of no use: a model is pushed once, to `main`, when its "
                    "training has ended; leave it out"
                )
    repo_id: str | None = args.hub_model_id
    if not repo_id:
        raise UserError("`push_to_hub` needs `--hub_model_id user/name`")
    is_run = isinstance(args, HubArguments)
    for name in _run_names(repo_id).values() if is_run else [repo_id]:
        check_name(name)
    token = token or get_token()
    if not token:
        raise UserError("`push_to_hub`: nobody is logged in at the Hub; run `hf auth login` first")
    args.push_to_hub = False
    return token


def publish_folder(folder: Path, args: TrainingArguments, token: str) -> None:
    """Upload a stage's model folder to `args.hub_model_id` and wait until it is there.

    An adapter over a model that only this machine has is uploaded merged. Raises `UserError` where
    that fails.
    """
    again = f"the model is in `{folder}`; push it again with `hf upload {args.hub_model_id} "
    again += f"{folder} --exclude training_args.bin --exclude README.md`"
    with one_line_errors(args.hub_model_id, token, again), tempfile.TemporaryDirectory() as made:
        repository = Repository(HfApi(token=token), args.hub_model_id, "model", folder, token)
        repository.create(bool(args.hub_private_repo))
        base = _adapter_base(folder)
        if base is not None and hub_name(base[0]) is None:
            save_merged_generator(folder, Path(made))
            folder, base = Path(made), None
        files = _model_files(folder)
        metrics_file = repository.source.parent / "metrics.json"
        metrics = read_json(metrics_file) if metrics_file.is_file() else {}
        record = RunRecord(repository.source, {"dev": metrics.get("dev") or {}})
        config = {} if base is not None else read_json(folder / "config.json")
        is_generator = bool(base or config.get("is_encoder_decoder"))
        if is_generator:
            card = generator_card(args.hub_model_id, record, 0, "unknown", base)
        else:
            card = retriever_card(args.hub_model_id, record, 0, "unknown")
        files |= _card_files(card, record, "generator" if is_generator else "retriever")
        repository.commit(files, f"agr_trl: {record.folder.name}")
    logger.info("published %s as %s", record.folder, args.hub_model_id)


def publish_run(
    run_folder: Path,
    repo_id: str,
    *,
    private: bool = False,
    merged_generator: bool = False,
    licence: str = "unknown",
    token: str | None = None,
) -> list[str]:
    """Upload a finished run and wait for it: `-retriever`, `-generator` and `-queries` of a name.

    The generator is an adapter over the warmed-up model, which lies in the same repository, or with
    `merged_generator` a model of its own. `private` makes new repositories private and refuses ones
    that are public. Returns the addresses; in other than the main process does nothing. Raises
    `UserError` with the command that pushes again; a rerun uploads only what is missing.
    """
    if not is_main_process():
        return []
    names = _run_names(repo_id)
    for name in names.values():
        check_name(name)
    run = read_run(run_folder)
    token = token or get_token()
    words = ["python", "recipes/push_to_hub.py", "--run_dir", str(run_folder), "--repo_id", repo_id]
    words += ["--private"] * private + ["--merged_generator"] * merged_generator
    words += ["--licence", licence] if licence != "unknown" else []
    again = f"the run is as it was; push again with `{shlex.join(words)}`"
    api = HfApi(token=token)
    retriever, generator, queries = (
        Repository(api, name, "dataset" if kind == "queries" else "model", run_folder, token)
        for kind, name in names.items()
    )
    with one_line_errors(repo_id, token, again):
        retried(api.whoami)
        for repository in (retriever, generator, queries):
            repository.create(private)
        _push_retrievers(retriever, run, licence)
        _push_generators(generator, run, merged_generator, licence)
        _push_queries(queries, run, licence)
    addresses = [repository.url for repository in (retriever, generator, queries)]
    logger.info("published %s as %s", run_folder, ", ".join(addresses))
    return addresses


def publish_space(
    run_folder: Path,
    repo_id: str,
    dataset_path: str | None = None,
    *,
    private: bool = False,
    licence: str = "unknown",
    token: str | None = None,
) -> str:
    """Upload the app of a finished run as a Space of its own, wait for it, return its address.

    It holds this package, the run's models, queries and metrics, and its data set: the catalogue
    and all judgements. `private` makes a new Space private and refuses one that is public. Raises
    `UserError` with the command that pushes again.
    """
    require_gradio()
    check_name(repo_id)
    token = token or get_token()
    record, run = open_run(run_folder, dataset_path)
    words = ["python", "recipes/app.py", "--run_dir", str(run_folder), "--push_to_space", repo_id]
    words += ["--dataset_path", dataset_path] if dataset_path else []
    words += ["--private"] * private + (["--licence", licence] if licence != "unknown" else [])
    again = f"push again with `{shlex.join(words)}`"
    repository = Repository(HfApi(token=token), repo_id, "space", run_folder, token)
    products, judgements = len(run.dataset.products), len(run.dataset.judgements)
    logger.info("the Space will hold %d products and %d judgements", products, judgements)
    with one_line_errors(repo_id, token, again), tempfile.TemporaryDirectory() as made:
        retried(repository.api.whoami)
        repository.create(private)
        files = _space_files(record, run, repo_id, licence, Path(made))
        repository.commit(files, "agr_trl: app")
    logger.info("published %s as %s", run_folder, repository.url)
    return repository.url


# --- What goes into the three repositories ------------------------------------------------------


def _push_retrievers(repository: Repository, run: RunRecord, licence: str) -> None:
    for number in run.kept_rounds():
        is_best = number == run.best_round
        files = _model_files((run.folder if is_best else run.round_folder(number)) / "retriever")
        weight = run.metrics["rounds"][number]["dev"].get("blend_weight")
        files["config.json"] = _json_with(files["config.json"], blend_weight=weight)
        card = retriever_card(repository.repo_id, run, number, licence)
        files |= _card_files(card, run, "retriever")
        repository.commit_round(files, number, is_best)


def _push_generators(repository: Repository, run: RunRecord, merged: bool, licence: str) -> None:
    warm_up = None  # the commit that adapters of later rounds need
    for number in run.kept_generators():
        is_best = number == run.best_round
        folder, base = run.round_folder(number) / "generator", None
        if not folder.is_dir():
            folder = run.folder / "generator"  # a control's is the warm-up's
        with tempfile.TemporaryDirectory() as made:
            local_base = _adapter_base(folder)
            if local_base is None or not merged:
                files = _model_files(folder)
            elif is_best:
                files = _model_files(run.folder / "generator")
            else:
                save_merged_generator(folder, Path(made))
                files = _model_files(Path(made))
            if ADAPTER_CONFIG in files and local_base is not None:
                base = _published_base(*local_base, repository.repo_id, warm_up)
                files[ADAPTER_CONFIG] = _json_with(
                    files[ADAPTER_CONFIG], base_model_name_or_path=base[0], revision=base[1]
                )
            card = generator_card(repository.repo_id, run, number, licence, base)
            files |= _card_files(card, run, "generator")
            oid = repository.commit_round(files, number, is_best)
        warm_up = oid if not number else warm_up


def _published_base(
    local: str, revision: str, repo_id: str, warm_up: str | None
) -> tuple[str, str]:
    """Return the name and revision on the Hub of the model below an adapter."""
    if hub_name(local) is not None:
        return local, revision
    if Path(local).parts[-2:] != ("round_00", "generator") or warm_up is None:
        raise UserError(
            "the generator's adapter stands on a model outside this run folder, so the adapter "
            "alone would not load; push with `--merged_generator`"
        )
    return repo_id, warm_up


def _push_queries(repository: Repository, run: RunRecord, licence: str) -> None:
    table = run.queries
    if table.empty:
        raise UserError("no query was accepted in any round, so there is no data set to publish")
    with tempfile.TemporaryDirectory() as made:
        file = Path(made) / "train.parquet"
        table.to_parquet(file, index=False)
        card = queries_card(repository.repo_id, run, licence)
        files: Files = {"data/train.parquet": file, "README.md": card.encode()}
        repository.commit_round(files, run.best_round, is_best=True)


def _card_files(card: str, run: RunRecord, kind: str) -> Files:
    """Return a card, and the picture that it shows where there is one."""
    files: Files = {"README.md": card.encode()}
    if kind in run.curves:
        files[CURVES_FILE] = run.curves[kind].encode()
    return files


def _model_files(folder: Path) -> Files:
    """Return the files of a model folder that others need."""
    return {
        file.name: file
        for file in sorted(folder.iterdir())
        if file.is_file() and not any(fnmatch(file.name, pattern) for pattern in NEVER_PUSHED)
    }


def _adapter_base(folder: Path) -> tuple[str, str] | None:
    """Return the model that an adapter folder stands on and its revision, None for a full model."""
    return recorded_base(folder) if (folder / ADAPTER_CONFIG).is_file() else None


def _json_with(file: Path | bytes, **values: object) -> bytes:
    """Return a JSON file's content with other values."""
    text = file.read_bytes() if isinstance(file, Path) else file
    return (json.dumps(json.loads(text) | values, indent=2, sort_keys=True) + "\n").encode()


def _run_names(repo_id: str) -> dict[str, str]:
    """Return the names of a run's repositories by what they hold."""
    return {kind: f"{repo_id}-{kind}" for kind in ("retriever", "generator", "queries")}


# --- What goes into a Space ---------------------------------------------------------------------


def _space_files(
    record: RunRecord, run: AdversarialRun, repo_id: str, licence: str, made: Path
) -> Files:
    """Return the app, this package, and what the app reads of the run; `made` takes new files."""
    package = Path(__file__).parent
    scorer = run.reward_args.relevance_model
    files: Files = {
        "README.md": space_card(repo_id, record, licence, version("gradio")).encode(),
        "app.py": SPACE_APP.encode(),
        "requirements.txt": "\n".join(_requirements(scorer)).encode() + b"\n",
    }
    files |= _files_below(package, "agr_trl", PACKAGE_ENDINGS)
    folders = {
        name: _model_files(record.folder / name)
        for name in ("retriever", "generator", "round_00/retriever")
    }
    files |= {f"run/{name}/{file}": path for name, found in folders.items()
              for file, path in found.items()}  # fmt: skip
    for number in range(len(record.metrics["rounds"])):
        name = f"round_{number:02d}/{QUERIES_FILE}"
        if (record.folder / name).is_file():
            files[f"run/{name}"] = record.folder / name
    for name, table in table_contents(run.dataset).items():
        table.to_parquet(made / f"{name}.parquet", index=False)
        files[f"run/data/{name}.parquet"] = made / f"{name}.parquet"
    files["run/metrics.json"] = record.folder / "metrics.json"
    config = dict(record.config)
    if Path(scorer).is_dir():  # a model of this machine comes along
        config["reward"] = config["reward"] | {"relevance_model": "relevance_model"}
        files |= _files_below(Path(scorer), "relevance_model", MODEL_ENDINGS)
    files["run/config.yaml"] = as_yaml(config).encode()
    return files


def _files_below(folder: Path, name: str, endings: Collection[str]) -> Files:
    return {
        f"{name}/{file.relative_to(folder).as_posix()}": file
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.suffix in endings
    }


def _requirements(scorer: str) -> list[str]:
    """Return what the Space installs beside gradio, whose version its card names."""
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text("utf-8"))
    needed: list[str] = project["project"]["dependencies"]
    return needed + [PACKAGED_MINILM] * (scorer == PACKAGED_MINILM)
