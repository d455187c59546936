"""Training that has gone wrong is named; a check here must fail without its cause."""

import logging
import math
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from toy_shop import DOCUMENTS, PROMPTS, build_generator, build_retriever, training_options
from transformers import (
    Seq2SeqTrainingArguments,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from trl import RLOOConfig

from agr_trl.acceptance import refuse_useless_queries
from agr_trl.bad_numbers import IDLE_VALUES, BadNumbersCallback, refuse_constant_scores
from agr_trl.config import LoraArguments, PromptArguments, WarmUpArguments
from agr_trl.errors import UserError
from agr_trl.generator import warm_up_trainer
from agr_trl.retriever import retriever_trainer
from agr_trl.stages import generator_trainer


def log(callback, tmp_path, **logs):
    state = TrainerState(global_step=7)
    callback.on_log(TrainingArguments(str(tmp_path)), state, TrainerControl(), logs)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_stops_and_is_named(value, tmp_path):
    log(BadNumbersCallback(), tmp_path, loss=0.5, note="nan", ok=True)
    with pytest.raises(UserError, match=r"step 7: `grad_norm` is .*lower `learning_rate`"):
        log(BadNumbersCallback(), tmp_path, loss=0.5, grad_norm=value)


def test_an_overflow_that_fp16s_scaler_skips_goes_on(tmp_path):
    args = SimpleNamespace(fp16=True, learning_rate=1e-4)
    callback, state = BadNumbersCallback(), TrainerState(global_step=7)
    callback.on_log(args, state, TrainerControl(), {"loss": 0.5, "grad_norm": math.inf})
    with pytest.raises(UserError, match="step 7: `loss` is inf"):
        callback.on_log(args, state, TrainerControl(), {"loss": math.inf})
    state.global_step = 99
    callback.on_log(args, state, TrainerControl(), {"grad_norm": 1.5})
    state.global_step = 198
    callback.on_log(args, state, TrainerControl(), {"grad_norm": math.nan})
    state.global_step = 199  # a hundred steps of which its scaler has skipped each
    with pytest.raises(UserError, match="step 199: `grad_norm` is nan"):
        callback.on_log(args, state, TrainerControl(), {"loss": 0.0, "grad_norm": math.nan})


@pytest.mark.parametrize(("name", "idle", "advice"), IDLE_VALUES)
def test_idle_training_is_told_once(name, idle, advice, tmp_path, caplog):
    callback = BadNumbersCallback()
    with caplog.at_level(logging.WARNING, logger="agr_trl"):
        log(callback, tmp_path, **{name: 0.5})
        assert not caplog.records
        log(callback, tmp_path, **{name: idle})
        log(callback, tmp_path, **{name: idle})
    assert [record.getMessage() for record in caplog.records] == [f"step 7: {advice}"]


def test_an_attack_is_watched(tmp_path):
    model, tokenizer = build_generator()
    options = training_options(tmp_path, max_completion_length=4, num_generations=4)
    trainer = generator_trainer(
        model, tokenizer, RLOOConfig(**options, bf16=False), LoraArguments(),
        PromptArguments(), pd.DataFrame({"prompt": PROMPTS}), [len],
    )  # fmt: skip
    watching = [type(callback) for callback in trainer.callback_handler.callbacks]
    assert BadNumbersCallback in watching


def test_a_retriever_that_diverges_stops_its_training(tmp_path):
    retriever = build_retriever()
    pairs = pd.DataFrame({"query": ["red chair"] * 8, "document": DOCUMENTS[0], "label": 1.0})
    with torch.no_grad():
        retriever.model.classifier.weight.fill_(math.inf)
    args = TrainingArguments(**training_options(tmp_path, max_steps=3, logging_steps=1))
    trainer = retriever_trainer(retriever, args, pairs, pairs, lambda _: {})
    with pytest.raises(UserError, match=r"step 1: `(loss|grad_norm)` is "):
        trainer.train()
    with pytest.raises(UserError, match="gives 8 of 8 pairs no number"):
        retriever.score(["red chair"] * 8, [DOCUMENTS[0]] * 8)


def test_a_warm_up_that_diverges_stops(tmp_path):
    model, tokenizer = build_generator()
    with torch.no_grad():
        model.shared.weight.fill_(math.nan)
    pairs = pd.DataFrame({"prompt": DOCUMENTS, "query": "red chair", "kind": "gold"})
    options = training_options(tmp_path, max_steps=3, logging_steps=1)
    trainer = warm_up_trainer(
        model, tokenizer, Seq2SeqTrainingArguments(**options), WarmUpArguments(), pairs, None
    )
    with pytest.raises(UserError, match=r"step 1: `(loss|grad_norm)` is nan"):
        trainer.train()


def test_a_retriever_that_says_the_same_of_everything():
    def refuse(*scores):
        pairs = pd.DataFrame({"query": ["chair"] * len(scores), "document": "red chair"})
        refuse_constant_scores(lambda *_: np.array(scores), pairs)

    refuse(0.3, 0.30001)
    refuse(0.3)
    with pytest.raises(UserError, match=r"all 3 dev pairs the log-odds 0\.300"):
        refuse(0.3, 0.3, 0.3)


def test_a_generator_that_writes_nothing_or_one_query():
    refuse_useless_queries(["chair", "", "lamp"], products=20)
    refuse_useless_queries(["chair"] * 8, products=10)  # a shop of chairs, perhaps
    with pytest.raises(UserError, match="blank queries only"):
        refuse_useless_queries(["", " ", " - !"], products=3)
    with pytest.raises(UserError, match="writes `leather chairs` for all 11 products"):
        refuse_useless_queries(["leather chairs", "Leather  chairs"] * 11, products=11)
