"""FSDP and DeepSpeed: a sharded retriever ends whole, an encoder-decoder is refused."""

import json
import os
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_multi_gpu_env
from toy_runs import build_run, write_beir, write_loop_config
from toy_shop import DOCUMENTS, QUERIES, build_generator, training_options
from transformers import Seq2SeqTrainingArguments
from trl import RLOOConfig

from agr_trl.config import WarmUpArguments
from agr_trl.errors import UserError
from agr_trl.generator import warm_up_trainer
from agr_trl.retriever import Retriever
from agr_trl.seq2seq_trainer import Seq2SeqRLOOTrainer

TESTS = Path(__file__).parent
CONFIGS = TESTS.parent / "accelerate_configs"


def launched(name: str) -> dict[str, str]:
    """Return what `accelerate launch --config_file NAME.yaml` sets in the environment."""
    words = ["--config_file", str(CONFIGS / f"{name}.yaml"), "train.py"]
    args, *_ = _validate_launch_command(launch_command_parser().parse_args(words))
    environment = prepare_multi_gpu_env(Namespace(**vars(args)))
    if args.use_deepspeed:  # its own function asks for an installed DeepSpeed
        environment["ACCELERATE_USE_DEEPSPEED"] = "true"
    return {k: v for k, v in environment.items() if k.startswith(("ACCELERATE_USE_", "FSDP_"))}


@pytest.mark.parametrize("name", ["fsdp2", "deepspeed_zero2"])
def test_encoder_decoders_are_refused_at_construction(name, tmp_path, monkeypatch):
    kind = name.partition("_")[0].rstrip("2")
    environment = launched(name)
    assert f"ACCELERATE_USE_{kind.upper()}" in environment
    options = training_options(tmp_path / "run")
    settings = Seq2SeqTrainingArguments(**options), RLOOConfig(**options, bf16=False)
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    model, tokenizer = build_generator()
    with pytest.raises(UserError, match=f"`{kind}` is not supported .*whole parameters"):
        warm_up_trainer(model, tokenizer, settings[0], WarmUpArguments(), None, None)
    with pytest.raises(UserError, match=f"`{kind}` is not supported .*whole parameters"):
        Seq2SeqRLOOTrainer(model, lambda **columns: [], settings[1], processing_class=tokenizer)
    config = write_loop_config(tmp_path / "run.yaml", write_beir(tmp_path / "shop"))
    with pytest.raises(UserError, match=f"`{kind}` is not supported .*multi_gpu.yaml"):
        build_run(config, tmp_path / "run")


def train_on_two_processes(folder: Path, lora_rank: int, **variables: str) -> tuple[dict, dict]:
    folder.mkdir()
    script = str(TESTS / "scripts" / "train_sharded_retriever.py")
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", script]
    environment = {
        "PYTHONPATH": f"{TESTS}{os.pathsep}{TESTS.parent}",
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
    }
    result = subprocess.run(
        [sys.executable, *command, str(folder), str(lora_rank)],
        env=os.environ | environment | variables,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return tuple(json.loads((folder / f"rank{rank}.json").read_text()) for rank in (0, 1))


@pytest.mark.slow
@pytest.mark.parametrize("lora_rank", [0, 4])
def test_a_sharded_retriever_is_that_of_data_parallelism(lora_rank, tmp_path):
    variables = launched("fsdp2")
    assert variables["ACCELERATE_USE_FSDP"] == "true" and variables["FSDP_VERSION"] == "2"
    ranks = train_on_two_processes(tmp_path / "sharded", lora_rank, **variables)
    plain, _ = train_on_two_processes(tmp_path / "plain", lora_rank)
    for rank in ranks:
        assert rank["world_size"] == 2 and rank["type"] == "FSDP"
        assert "DTensor" in rank["classes"]
    sharded = ranks[0]
    assert plain["type"] == "MULTI_CPU" and "DTensor" not in plain["classes"]
    for name in ("losses", "after", "scores"):
        assert sharded[name] == pytest.approx(plain[name], abs=1e-4), name
    assert sharded["scores"] != pytest.approx(sharded["before"], abs=1e-2)
    # The checkpoint is a plain one: whole tensors, loaded by anybody, with the same scores.
    loaded = Retriever.from_pretrained(str(tmp_path / "sharded" / "retriever"))
    pairs = [(query, document) for query in QUERIES.values() for document in DOCUMENTS]
    with torch.inference_mode():
        scores = loaded.score(*map(list, zip(*pairs, strict=True)))
    assert scores.tolist() == pytest.approx(sharded["scores"], abs=1e-5)
