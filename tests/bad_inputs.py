"""What users get wrong: inputs broken in one place each, and what the job has to say of them.

A case breaks a toy shop, a toy model or the settings, and names the job that meets it.
test_bad_inputs.py runs the cases; docs/reliability.md lists them.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
import yaml
from safetensors.torch import load_file, save_file
from toy_runs import GENERATOR, RETRIEVER, as_words, write_loop_config
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

Words = list[str | Path]


@dataclass(frozen=True)
class Place:
    """Where a case works: copies of whole inputs, which it may break."""

    folder: Path
    whole: Path

    def copy(self, name: str) -> Path:
        """Return a copy of a whole input: beir, pairs, wands, retriever, generator."""
        return shutil.copytree(self.whole / name, self.folder / name, dirs_exist_ok=True)

    def output(self) -> Path:
        """Return where the job shall write."""
        return self.folder / "out"


@dataclass(frozen=True)
class Case:
    """One broken input: its kind, what is broken, the job, what the message holds, how to break."""

    kind: str
    broken: str
    job: str
    says: str
    words: Callable[[Place], Words]

    def __str__(self) -> str:
        return f"{self.kind}: {self.broken}"


# --- How inputs are broken ----------------------------------------------------------------------


def replaced(file: str, old: str, new: str) -> Callable[[Path], None]:
    """Return a change: a text of a file, which must be there, is another; "" is all of it."""

    def change(folder: Path) -> None:
        text = (folder / file).read_text(encoding="utf-8")
        assert old in text, f"{file} has no {old!r}"
        (folder / file).write_text(text.replace(old, new, 1) if old else new, encoding="utf-8")

    return change


def data(name: str, change: Callable[[Path], None]) -> Callable[[Place], Words]:
    """Return a case's words: broken data of a format."""

    def words(place: Place) -> Words:
        folder = place.copy(name)
        change(folder)
        return ["--dataset_format", name, "--dataset_path", folder]

    return words


def given(*words: str) -> Callable[[Place], Words]:
    """Return a case's words, the same wherever it works, on the whole BEIR folder."""
    return lambda place: [*on_beir(place), *words]


def on_beir(place: Place) -> Words:
    return ["--dataset_format", "beir", "--dataset_path", place.whole / "beir"]


def settings(text: str) -> Callable[[Place], Words]:
    """Return a case's words: a YAML file of this text."""

    def words(place: Place) -> Words:
        path = place.folder / "settings.yaml"
        path.write_text(text, encoding="utf-8")
        return ["--config", path]

    return words


def loop(**changes: object) -> Callable[[Place], Words]:
    """Return a case's words: an adversarial run with settings `section.name` changed."""

    def words(place: Place) -> Words:
        path = write_loop_config(place.folder / "run.yaml", place.whole / "beir")
        content = yaml.safe_load(path.read_text())
        for name, value in changes.items():
            section, _, setting = name.rpartition("__")
            (content[section] if section else content)[setting] = value
        path.write_text(yaml.safe_dump(content))
        return ["--config", path, "--output_dir", place.output()]

    return words


def retriever(change: Callable[[Path], None], *words: str) -> Callable[[Place], Words]:
    """Return a case's words: evaluate a broken retriever."""

    def all_words(place: Place) -> Words:
        folder = place.copy("retriever")
        change(folder)
        return [*on_beir(place), "--retriever_name_or_path", folder, *words]

    return all_words


def generator(change: Callable[[Path], None], *words: str) -> Callable[[Place], Words]:
    """Return a case's words: write queries with a broken generator."""

    def all_words(place: Place) -> Words:
        folder = place.copy("generator")
        change(folder)
        more = ["--generator_name_or_path", folder, "--output_dir", place.output()]
        return [*on_beir(place), *more, *words]

    return all_words


def cut_in_half(name: str) -> Callable[[Path], None]:
    """Return a change: a file ends after half of its bytes, as after a broken copy."""

    def change(folder: Path) -> None:
        path = folder / name
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    return change


def removed(*names: str) -> Callable[[Path], None]:
    """Return a change: files are not there."""

    def change(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return change


def with_json(name: str, **values: object) -> Callable[[Path], None]:
    """Return a change: fields of a JSON file are others."""

    def change(folder: Path) -> None:
        path = folder / name
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return change


def as_pickle(folder: Path) -> None:
    """Turn safetensors into a pickle, which may run code when it is read."""
    weights = folder / "model.safetensors"
    torch.save(load_file(weights), folder / "pytorch_model.bin")
    weights.unlink()


def with_three_classes(folder: Path) -> None:
    names = {str(number): f"class {number}" for number in range(3)}
    with_json("config.json", id2label=names, label2id={v: int(k) for k, v in names.items()})(folder)


def without_weights(folder: Path) -> None:
    """Leave half of the model's tensors out of its file."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    kept = dict(list(tensors.items())[: len(tensors) // 2])
    save_file(kept, path, metadata={"format": "pt"})


def with_more_words(folder: Path) -> None:
    """Put another model's tokenizer beside the model."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([f"word{number}" for number in range(50)])
    tokenizer.save_pretrained(folder)


def with_an_adapter_of_a_lost_base(folder: Path) -> None:
    for path in folder.iterdir():
        if path.name != "tokenizer.json" and path.name != "tokenizer_config.json":
            path.unlink()
    config = {
        "peft_type": "LORA",
        "task_type": "SEQ_2_SEQ_LM",
        "base_model_name_or_path": "/nowhere/base",
        "r": 4,
        "target_modules": ["q", "v"],
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))


def with_an_adapter_of_another_base(folder: Path) -> None:
    """Put beside the model an adapter of a wider one."""
    base = folder.with_name("base")
    shutil.copytree(folder, base)
    with_an_adapter_of_a_lost_base(folder)
    with_json("adapter_config.json", base_model_name_or_path=str(base))(folder)
    name = "base_model.model.encoder.block.0.layer.0.SelfAttention.q.lora_{}.weight"
    shapes = {"A": (4, 999), "B": (999, 4)}
    save_file(
        {name.format(part): torch.zeros(shape) for part, shape in shapes.items()},
        folder / "adapter_model.safetensors",
    )


def with_an_adapter_without_weights(folder: Path) -> None:
    with_an_adapter_of_another_base(folder)
    (folder / "adapter_model.safetensors").unlink()


def as_decoder(folder: Path) -> None:
    """Replace the model by one without an encoder."""
    for path in folder.glob("*.safetensors"):
        path.unlink()
    config = GPT2Config(vocab_size=32, n_positions=16, n_embd=8, n_layer=1, n_head=1)
    GPT2LMHeadModel(config).save_pretrained(folder)


def job_on(place: Place, path: Path) -> Words:
    """Return the words of a training that writes to `path`."""
    return [*on_beir(place), *as_words(RETRIEVER), "--output_dir", path]


def output_is_a_file(place: Place) -> Words:
    place.output().write_text("mine")
    return job_on(place, place.output())


def output_is_in_a_file(place: Place) -> Words:
    place.output().write_text("mine")
    return job_on(place, place.output() / "run")


def run_of_other_settings(place: Place) -> Words:
    words = loop()(place)
    place.output().mkdir()
    settings_then = {"dataset_format": "beir", "seed": 7}
    (place.output() / "config.yaml").write_text(yaml.safe_dump(settings_then))
    (place.output() / "run.json").write_text(json.dumps({"data_fingerprint": "", "commit": ""}))
    (place.output() / "round_00").mkdir()  # work that could be lost
    return words


def with_a_query_in_two_splits(folder: Path) -> None:
    train = pd.read_csv(folder / "qrels" / "train.tsv", sep="\t")
    dev = pd.read_csv(folder / "qrels" / "dev.tsv", sep="\t")
    pd.concat([dev, train[:1]]).to_csv(folder / "qrels" / "dev.tsv", sep="\t", index=False)


def in_latin_1(folder: Path) -> None:
    line = '{"_id": "q0", "text": "café"}\n'
    (folder / "queries.jsonl").write_bytes(line.encode("latin-1"))


def pairs_file(name: str, content: str) -> Callable[[Place], Words]:
    """Return a case's words: one file of pairs."""

    def words(place: Place) -> Words:
        path = place.folder / name
        path.write_text(content, encoding="utf-8")
        return ["--dataset_format", "pairs", "--dataset_path", path]

    return words


def esci_without_parquet(place: Place) -> Words:
    folder = place.folder / "esci"
    folder.mkdir()
    for name in ("examples", "products"):
        path = folder / f"shopping_queries_dataset_{name}.parquet"
        path.write_text("version https://git-lfs.github.com/spec/v1\n")
    return ["--dataset_format", "esci", "--dataset_path", folder]


def half_a_parquet(place: Place) -> Words:
    path = place.folder / "train.parquet"
    pd.DataFrame({"query": ["a"], "document": ["b"], "label": [1.0]}).to_parquet(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return ["--dataset_format", "pairs", "--dataset_path", path]


def all_relevant(place: Place) -> Words:
    header = "query-id\tcorpus-id\tscore\n"
    folder = place.copy("beir")
    for split in ("train", "dev", "test"):
        path = folder / "qrels" / f"{split}.tsv"
        rows = [row for row in path.read_text().splitlines()[1:] if not row.endswith("\t0")]
        path.write_text(header + "\n".join(rows) + "\n")
    path = write_loop_config(place.folder / "run.yaml", folder, dev_metric="pr_auc")
    return ["--config", path, "--output_dir", place.output()]


def compare(**changes: str) -> Callable[[Place], Words]:
    """Return a case's words: a comparison with settings changed on the command line."""
    changes = {"synthetic_queries_per_round": "9"} | changes
    return lambda place: [*loop()(place), *as_words(changes)]


def attack(**changes: str) -> Callable[[Place], Words]:
    """Return a case's words: the generator's training with settings changed."""
    return lambda place: [
        *on_beir(place),
        *as_words(GENERATOR | changes),
        *("--generator_name_or_path", place.whole / "generator"),
        *("--retriever_name_or_path", place.whole / "retriever"),
        *("--relevance_model", "lsa", "--output_dir", place.output()),
    ]


TRAIN, QRELS = "qrels/train.tsv", "query-id\tcorpus-id\tscore\n"
V, A, E, G = "validate_data", "train_adversarial", "evaluate_retriever", "generate_queries"
R, T, C = "train_retriever", "train_generator", "compare_arms"

CASES = [
    # BEIR folders
    Case("BEIR", "no folder", V, "does not exist",
         lambda p: ["--dataset_format", "beir", "--dataset_path", p.folder / "none"]),
    Case("BEIR", "a file instead of a folder", V, "is a file; beir needs a folder",
         lambda p: ["--dataset_format", "beir", "--dataset_path", p.whole / "beir/corpus.jsonl"]),
    Case("BEIR", "no corpus.jsonl", V, "corpus.jsonl is missing",
         data("beir", removed("corpus.jsonl"))),
    Case("BEIR", "no queries.jsonl", V, "queries.jsonl is missing",
         data("beir", removed("queries.jsonl"))),
    Case("BEIR", "no qrels", V, "holds none of train.tsv, dev.tsv, test.tsv",
         data("beir", removed(TRAIN, "qrels/dev.tsv", "qrels/test.tsv"))),
    Case("BEIR", "a line that is no JSON", V, "line 1: broken JSON",
         data("beir", replaced("corpus.jsonl", '{"_id"', '{_id'))),
    Case("BEIR", "a line that is a list", V, "not a JSON object",
         data("beir", replaced("corpus.jsonl", "", '["a"]\n'))),
    Case("BEIR", "a product without an id", V, "no field `_id`",
         data("beir", replaced("corpus.jsonl", '"_id": "p0"', '"id": "p0"'))),
    Case("BEIR", "a title that is a number", V, "it must be a text",
         data("beir", replaced("corpus.jsonl", '"title": "red oak chair"', '"title": 7'))),
    Case("BEIR", "two products of one id", V, "same id",
         data("beir", replaced("corpus.jsonl", '"_id": "p1"', '"_id": "p0"'))),
    Case("BEIR", "an empty catalogue", V, "corpus.jsonl is empty",
         data("beir", replaced("corpus.jsonl", "", ""))),
    Case("BEIR", "a blank query", V, "`query` is ''",
         data("beir", replaced("queries.jsonl", '"text": "red chair"', '"text": " "'))),
    Case("BEIR", "a query's line cut in the middle", V, "broken JSON",
         data("beir", replaced("queries.jsonl", '"red chair"}', '"red ch'))),
    Case("BEIR", "text that is not UTF-8", V, "is not UTF-8",
         data("beir", in_latin_1)),
    Case("BEIR", "a judgement of an unknown product", V, "`product_id` is 'p99'",
         data("beir", replaced(TRAIN, "\tp0\t", "\tp99\t"))),
    Case("BEIR", "a judgement of an unknown query", V, "`query_id` is 'q99'",
         data("beir", replaced(TRAIN, "q0\t", "q99\t"))),
    Case("BEIR", "a grade below 0", V, "a grade is a whole number from 0",
         data("beir", replaced(TRAIN, "\tp0\t2", "\tp0\t-1"))),
    Case("BEIR", "a grade that is a word", V, "a grade is a whole number from 0",
         data("beir", replaced(TRAIN, "\tp0\t2", "\tp0\tgood"))),
    Case("BEIR", "a rating from 0 to 100", V, "map finer ratings to a few grades",
         data("beir", replaced(TRAIN, "\tp0\t2", "\tp0\t80"))),
    Case("BEIR", "a grade of infinity", V, "a grade is a whole number from 0",
         data("beir", replaced(TRAIN, "\tp0\t2", "\tp0\tinf"))),
    Case("BEIR", "one pair judged twice, differently", V, "an earlier row has another",
         data("beir", replaced(TRAIN, QRELS, QRELS + "q0\tp0\t0\n"))),
    Case("BEIR", "qrels without a header", V, "has no column",
         data("beir", replaced(TRAIN, QRELS, ""))),
    Case("BEIR", "qrels separated by commas", V, "looks comma-separated",
         data("beir", replaced(TRAIN, "", "query-id,corpus-id,score\nq0,p0,1\n"))),
    Case("BEIR", "a row with a field missing", V, "2 fields where the header has 3",
         data("beir", replaced(TRAIN, "\tp0\t2", "\tp0"))),
    Case("BEIR", "qrels of a header alone", V, "holds no judgement",
         data("beir", replaced(TRAIN, "", QRELS))),
    Case("BEIR", "a query in two splits", V, "a query belongs in one split",
         data("beir", with_a_query_in_two_splits)),
    Case("BEIR", "a split that it does not have", E, "there is no split 'test'",
         lambda p: [*data("beir", removed("qrels/test.tsv"))(p), "--split", "test",
                    "--retriever_name_or_path", "bm25"]),
    # Files of pairs
    Case("pairs", "a label above 1", V, "a label is a number from 0 to 1",
         pairs_file("train.csv", "query,document,label\nlamp,red lamp,2\n")),
    Case("pairs", "a label that is a word", V, "a label is a number from 0 to 1",
         pairs_file("train.csv", "query,document,label\nlamp,red lamp,yes\n")),
    Case("pairs", "a column missing", V, "has no column label",
         pairs_file("train.csv", "query,document\nlamp,red lamp\n")),
    Case("pairs", "a blank document", V, "`document` is ''",
         pairs_file("train.csv", "query,document,label\nlamp,,1\n")),
    Case("pairs", "an empty file", V, "is empty", pairs_file("train.csv", "")),
    Case("pairs", "a header alone", V, "holds no pair",
         pairs_file("train.csv", "query,document,label\n")),
    Case("pairs", "a quote that never ends", V, "line 2",
         pairs_file("train.csv", 'query,document,label\n"lamp,red lamp,1\n')),
    Case("pairs", "a suffix that nobody reads", V, "convert it to one of them",
         pairs_file("train.xlsx", "x")),
    Case("pairs", "JSONL with a field missing", V, "no field label",
         pairs_file("train.jsonl", '{"query": "lamp", "document": "red lamp"}\n')),
    Case("pairs", "Parquet that was cut off", V, "is not a Parquet file", half_a_parquet),
    Case("pairs", "a folder without train, dev, test", V, "name the files after their split",
         data("pairs", removed("train.csv", "dev.csv"))),
    # WANDS and ESCI
    Case("WANDS", "label.csv missing", V, "label.csv is missing",
         data("wands", removed("label.csv"))),
    Case("WANDS", "a label that WANDS has not", V, "`label` is 'Maybe'",
         data("wands", replaced("label.csv", "Partial", "Maybe"))),
    Case("WANDS", "a judgement of an unknown product", V, "`product_id` is '9'",
         data("wands", replaced("label.csv", "\t1\tPartial", "\t9\tPartial"))),
    Case("WANDS", "a column twice", V, "names a column twice",
         data("wands", replaced("query.csv", "query_class", "query"))),
    Case("WANDS", "a product without a name", V, "`product_name` is ''",
         data("wands", replaced("product.csv", "red sofa", " "))),
    Case("ESCI", "a git-lfs pointer instead of Parquet", V, "git lfs pull", esci_without_parquet),
    Case("ESCI", "a locale that ESCI has not", V, "esci_locale",
         given("--esci_locale", "fr")),
    # Settings
    Case("settings", "a YAML file that is not there", R, "none.yaml",
         lambda p: ["--config", p.folder / "none.yaml"]),
    Case("settings", "YAML that does not parse", R, "line 1",
         settings("learning_rate: [1\n")),
    Case("settings", "YAML that is a list", R, "settings.yaml", settings("- a\n- b\n")),
    Case("settings", "YAML that asks for a Python object", R, "settings.yaml",
         settings("output_dir: !!python/object/apply:os.system ['true']\n")),
    Case("settings", "a section that stands twice", A, "`reward` stands in line 1 and 2",
         settings("reward: {min_relevance: 0.7}\nreward: {loss_reward: bce}\n")),
    Case("settings", "a seed below 0", R, "`seed` is -1; it must be from 0", given("--seed", "-1")),
    Case("settings", "a stage that says not where to write", R, "`output_dir` is not set",
         settings("dataset_format: demo\n")),
    Case("settings", "more frozen layers than there are", A, "`frozen_layers` is 9; the retriever",
         loop(retriever__frozen_layers=9)),
    Case("settings", "a weight too few for the rewards", T, "there are 3 rewards to weigh",
         attack(reward_weights="1")),
    Case("settings", "modules that the generator has not", T, "not found in the base model",
         attack(lora_modules="q_proj")),
    Case("settings", "a setting that nobody knows", R, "learning_rte",
         settings("dataset_format: demo\noutput_dir: x\nlearning_rte: 1\n")),
    Case("settings", "a flag that nobody knows", R, "--learning_rte",
         given("--learning_rte", "1")),
    Case("settings", "an abbreviated flag", R, "--learning",
         given("--learning", "1")),
    Case("settings", "a word where a number belongs", R, "max_steps",
         given("--max_steps", "many")),
    Case("settings", "a choice that is none", R, "dataset_format",
         given("--dataset_format", "trec")),
    Case("settings", "a section that nobody knows", A, "reader",
         lambda p: [*loop()(p), "--reader.max_steps", "3"]),
    Case("settings", "a number outside its range", A, "`min_relevance` is 2",
         loop(reward__min_relevance=2)),
    Case("settings", "a dev metric that the data has not", A, "`dev_metric` is bleu",
         loop(dev_metric="bleu")),
    Case("settings", "areas asked of dev pairs of one kind", A, "this data has f1", all_relevant),
    Case("settings", "a relevant grade above the highest", A, "must be from 1 to 2",
         loop(relevant_grade=3)),
    Case("settings", "no negative pool", A, "`synthetic_negative_pool` is 0",
         loop(synthetic_negative_pool=0)),
    Case("settings", "the hardest of no number", A, "`hardest_of` needs", loop(hardest_of=2)),
    Case("settings", "a group that does not divide the batch", T, "num_generations",
         attack(num_generations="3")),
    Case("settings", "vLLM for an encoder-decoder", T, "`use_vllm` is not supported",
         attack(use_vllm="true")),
    Case("settings", "an arm that nobody knows", C, "`arms` names `gpl`",
         compare(arms="gpl")),
    Case("settings", "an ablation of an unknown setting", C, "hardness",
         compare(ablations='{"harder": {"hardness": 2}}')),
    Case("settings", "one fold", C, "`folds` is 1", compare(folds="1")),
    Case("settings", "a blank search", "search", "give a query",
         lambda p: [*on_beir(p), "--retriever_name_or_path", p.whole / "retriever",
                    "--query", " "]),
    Case("settings", "a blend weight above 1", E, "`blend_weight` is 1.5",
         lambda p: [*on_beir(p), "--retriever_name_or_path", p.whole / "retriever",
                    "--blend_weight", "1.5"]),
    # Models
    Case("model", "no such folder", E, "is not there yet",
         given("--retriever_name_or_path", "runs/nothing/retriever")),
    Case("model", "a folder without config.json", E, "holds no model",
         retriever(removed("config.json"))),
    Case("model", "config.json cut off", E, "config.json", retriever(cut_in_half("config.json"))),
    Case("model", "weights cut off", E, "cannot load the weights",
         retriever(cut_in_half("model.safetensors"))),
    Case("model", "weights missing", E, "cannot load", retriever(removed("model.safetensors"))),
    Case("model", "half of the tensors missing", E, "lacks", retriever(without_weights)),
    Case("model", "weights in a pickle", E, "pickle", retriever(as_pickle)),
    Case("model", "weights of another width", E, "cannot load",
         retriever(with_json("config.json", hidden_size=64, intermediate_size=256))),
    Case("model", "a model type that nobody knows", E, "cannot load",
         retriever(with_json("config.json", model_type="no-such-type"))),
    Case("model", "three classes", E, "has 3 classes", retriever(with_three_classes)),
    Case("model", "no tokenizer", E, "tokenizer",
         retriever(removed("tokenizer.json", "tokenizer_config.json"))),
    Case("model", "a tokenizer cut off", E, "tokenizer", retriever(cut_in_half("tokenizer.json"))),
    Case("model", "a tokenizer of more words than the model has", E, "do not belong together",
         retriever(with_more_words)),
    Case("model", "longer pairs than it can read", E, "reads at most",
         retriever(lambda folder: None, "--max_pair_tokens", "5000")),
    Case("model", "code of its own", E, "contains custom code",
         retriever(with_json("config.json", model_type="own",
                             auto_map={"AutoConfig": "own.Config"}))),
    Case("model", "a generator that is no encoder-decoder", G, "encoder-decoder",
         generator(as_decoder)),
    Case("model", "a generator whose weights are cut off", G, "cannot load the weights",
         generator(cut_in_half("model.safetensors"))),
    Case("model", "a generator without a tokenizer", G, "tokenizer",
         generator(removed("tokenizer.json", "tokenizer_config.json"))),
    Case("model", "a retriever as generator", G, "encoder-decoder",
         lambda p: [*on_beir(p), "--generator_name_or_path", p.whole / "retriever",
                    "--output_dir", p.output()]),
    Case("model", "an adapter whose base is lost", G, "/nowhere/base",
         generator(with_an_adapter_of_a_lost_base)),
    Case("model", "an adapter of another base", G, "does not fit",
         generator(with_an_adapter_of_another_base)),
    Case("model", "an adapter without weights", G, "has no adapter_model.safetensors",
         generator(with_an_adapter_without_weights)),
    Case("model", "a retriever that is not at hand", A, "cannot load model `nobody/has-this`",
         loop(retriever__retriever_name_or_path="nobody/has-this")),
    Case("model", "a generator that is not at hand", A, "cannot load model `nobody/has-this`",
         loop(warm_up__generator_name_or_path="nobody/has-this")),
    Case("model", "a name that is not at hand, without network", E, "cannot load",
         given("--retriever_name_or_path", "nobody/has-this")),
    Case("model", "a relevance model that is not at hand", A, "cannot load the relevance model",
         loop(reward__relevance_model="nobody/has-this")),
    # Run folders
    Case("run folder", "a file where the run shall be", R, "is a file", output_is_a_file),
    Case("run folder", "a file among its parents", R, "is a file", output_is_in_a_file),
    Case("run folder", "begun with other settings", A, "was begun with other settings",
         run_of_other_settings),
    Case("run folder", "no run to publish", "push_to_hub", "none",
         lambda p: [p.folder / "none", "--repo_id", "user/name"]),
]  # fmt: skip
