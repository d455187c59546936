import json
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from casts import CastCounter
from datasets import Dataset
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from seq2seq_models import (
    BOS,
    EOS,
    FAMILIES,
    PAD,
    PROMPTS,
    TRAINERS,
    UNK,
    build_byt5,
    build_model,
    build_tokenizer,
    build_trainer,
    lora,
    parameters_of,
)
from torch.nn.utils import parameters_to_vector
from transformers import (
    BertConfig,
    BertLMHeadModel,
    ByT5Tokenizer,
    EncoderDecoderConfig,
    EncoderDecoderModel,
    LEDConfig,
    LEDForConditionalGeneration,
    ProphetNetConfig,
    ProphetNetForConditionalGeneration,
    SwitchTransformersConfig,
    SwitchTransformersForConditionalGeneration,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from trl import GRPOConfig, RLOOConfig
from trl.trainer.utils import pad

from agr_trl import sampling, seq2seq_trainer
from agr_trl.dropout import disable_dropout
from agr_trl.seq2seq_trainer import (
    Seq2SeqGRPOConfig,
    Seq2SeqGRPOTrainer,
    Seq2SeqRLOOTrainer,
    decoder_prefix,
)

GROUP = [PROMPTS[0], PROMPTS[2], PROMPTS[0], PROMPTS[1]] * 2  # 3 distinct prompts, shuffled


def batch(rows: list[list[int]], side: str) -> tuple[torch.Tensor, torch.Tensor]:
    tensors = [torch.tensor(row) for row in rows]
    ids = pad(tensors, padding_value=PAD, padding_side=side)
    return ids, pad([torch.ones_like(row) for row in tensors], padding_side=side)


def score(
    trainer: Any,
    prompts: list[list[int]],
    completions: list[list[int]],
    side: str = "left",
    model: Any = None,
    **options: Any,
) -> Any:
    """Score lists of token ids as TRL lays them out."""
    prompt_ids, prompt_mask = batch(prompts, side)
    completion_ids, completion_mask = batch(completions, "right")
    return trainer._get_per_token_logps_and_entropies(
        model or trainer.model,
        torch.cat([prompt_ids, completion_ids], dim=1),
        torch.cat([prompt_mask, completion_mask], dim=1),
        completion_ids.size(1),
        **options,
    )


def sample(trainer: Any, texts: list[str] = GROUP) -> tuple[list[list[int]], list[list[int]]]:
    prompts, _, _ = trainer._tokenize_prompts(texts)
    return prompts, trainer._sample(prompts)[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_scored_log_probabilities_are_those_of_sampling(family, tmp_path, monkeypatch):
    model = build_model(family)
    trainer = build_trainer(model, tmp_path, max_completion_length=16)
    draw, met = sampling.Sampler.draw, []

    def recording(sampler, logits):
        met.append(logits.clone())
        return draw(sampler, logits)

    monkeypatch.setattr(sampling.Sampler, "draw", recording)
    prompts, _, _ = trainer._tokenize_prompts(GROUP)
    completions, while_sampling = trainer._sample(prompts)
    logits = torch.stack(met, dim=1)
    sampled = (logits / trainer.temperature).log_softmax(-1)  # (B, C, V)
    logps, entropies, _ = score(trainer, prompts, completions, compute_entropy=True)

    assert len({len(ids) for ids in completions}) > 1  # some ended early
    for row, ids in enumerate(completions):
        steps = sampled[row, : len(ids)]
        expected = steps.gather(1, torch.tensor(ids)[:, None])[:, 0]
        torch.testing.assert_close(logps[row, : len(ids)], expected, atol=1e-5, rtol=0)
        torch.testing.assert_close(while_sampling[row, : len(ids)], expected, atol=1e-5, rtol=0)
        assert logps[row, len(ids) :].eq(0).all()
        entropy = -(steps.exp() * steps).sum(-1)
        torch.testing.assert_close(entropies[row, : len(ids)], entropy, atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_sampled_frequencies_follow_the_scores(family, tmp_path):
    # 4,000 draws of one token: every frequency within 5 standard errors of its scored probability.
    trainer = build_trainer(build_model(family), tmp_path, max_completion_length=1)
    prompts, _, _ = trainer._tokenize_prompts([PROMPTS[0]] * 4000)
    torch.manual_seed(0)
    tokens = torch.tensor(trainer._sample(prompts)[0])
    every_token = [[token] for token in range(24)]
    probability = score(trainer, prompts[:24], every_token)[0].detach().exp()[:, 0]
    assert probability.sum().item() == pytest.approx(1, abs=1e-5)
    frequency = torch.bincount(tokens[:, 0], minlength=24) / 4000
    error = (probability * (1 - probability) / 4000).sqrt()
    assert ((frequency - probability).abs() < 5 * error + 1e-4).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_and_neighbours_do_not_matter(family, tmp_path):
    trainer = build_trainer(build_model(family), tmp_path)
    prompts, completions = sample(trainer)
    left, right = (score(trainer, prompts, completions, side)[0] for side in ("left", "right"))
    chunked = score(trainer, prompts, completions, batch_size=3)[0]
    torch.testing.assert_close(left, right, atol=1e-6, rtol=0)
    torch.testing.assert_close(left, chunked, atol=1e-5, rtol=0)
    for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        alone = score(trainer, [prompt], [completion])[0][0]
        torch.testing.assert_close(left[row, : len(completion)], alone, atol=1e-5, rtol=0)


def test_a_sampled_pad_token_counts_and_what_follows_the_end_does_not(tmp_path):
    trainer = build_trainer(build_model("bart"), tmp_path)
    prompts, _, _ = trainer._tokenize_prompts(PROMPTS[:2])
    with_pad = score(trainer, prompts, [[5, PAD, 7, EOS], [5, EOS]])[0]
    assert with_pad[0].lt(0).all()
    assert with_pad[1].lt(0).tolist() == [True, True, False, False]
    alone = score(trainer, prompts[1:], [[5, EOS]])[0]
    torch.testing.assert_close(with_pad[1:, :2], alone, atol=1e-6, rtol=0)
    cut = seq2seq_trainer._until_end(torch.tensor([[5, EOS, PAD], [EOS, 5, 6], [4, 5, 6]]), [EOS])
    assert cut == [[5, EOS], [EOS], [4, 5, 6]]


def test_decoder_prefix_holds_a_forced_first_token():
    assert decoder_prefix(build_model("t5")) == [PAD]
    assert decoder_prefix(build_model("bart")) == [EOS, BOS]
    assert decoder_prefix(build_model("mbart")) == [BOS]
    nowhere = build_model("t5")
    nowhere.generation_config.update(decoder_start_token_id=None, bos_token_id=None)
    with pytest.raises(ValueError, match="decoder_start_token_id"):
        decoder_prefix(nowhere)


def first_encoder_layer(model: torch.nn.Module) -> torch.nn.Module:
    encoder = model.get_encoder()
    return encoder.block[0] if "block" in dict(encoder.named_children()) else encoder.layers[0]


def cross_attention_keys(model: torch.nn.Module) -> torch.nn.Module:
    """Return the layer that makes keys of what was encoded, in the decoder's first block."""
    names = [
        name
        for name, _ in model.get_decoder().named_modules()
        if name.endswith(("EncDecAttention.k", "encoder_attn.k_proj", "cross_attn.k_proj"))
    ]
    return model.get_decoder().get_submodule(names[0])


def count_rows(module: torch.nn.Module, rows: list[int]) -> None:
    module.register_forward_pre_hook(
        lambda _, args, kwargs: rows.append(len((*args, *kwargs.values())[0])), with_kwargs=True
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_encodes_each_distinct_prompt_once_per_pass(family, tmp_path):
    trainer = build_trainer(build_model(family), tmp_path, max_steps=1)
    encoded: list[int] = []
    attended: list[int] = []
    for model in (trainer.model, trainer.ref_model):
        count_rows(first_encoder_layer(model), encoded)
    trainer.train()
    # 8 rows of 2 prompts: for sampling and the loss, and for the reference. Old scores come from
    # sampling.
    assert encoded == [2, 2]
    assert not trainer.model.get_encoder()._forward_pre_hooks  # nothing left behind
    assert "forward" not in vars(trainer.model.get_encoder())
    assert not any(module._forward_hooks for module in trainer.model.get_decoder().modules())

    prompts, _, _ = trainer._tokenize_prompts(GROUP)
    with seq2seq_trainer.encode_once(trainer.model):
        # The count is registered last, so that it sees what the layer itself is given.
        count_rows(cross_attention_keys(trainer.model), attended)
        prompt_ids, prompt_mask = batch(prompts, "right")
        trainer.model(
            input_ids=prompt_ids, attention_mask=prompt_mask, decoder_input_ids=prompt_ids[:, :1]
        )
    assert attended == [3]  # of 8 rows


@pytest.mark.parametrize("texts", [GROUP, GROUP[:3] * 3, PROMPTS])  # uneven, even, all differ
@pytest.mark.parametrize("family", FAMILIES)
def test_sharing_the_encoder_changes_neither_scores_nor_gradients(
    family, texts, tmp_path, monkeypatch
):
    trainer = build_trainer(build_model(family), tmp_path)
    prompts, completions = sample(trainer, texts)

    def scores_and_gradients():
        trainer.model.zero_grad()
        logps = score(trainer, prompts, completions)[0]
        logps.sum().backward()
        learned = trainer.model.named_parameters()
        return logps.detach(), {n: p.grad.clone() for n, p in learned if p.grad is not None}

    shared = scores_and_gradients()
    torch.manual_seed(0)
    with_sharing = trainer._sample(prompts)
    for module in (seq2seq_trainer, sampling):
        monkeypatch.setattr(module, "encode_once", lambda model: nullcontext())
    torch.testing.assert_close(shared, scores_and_gradients(), atol=1e-4, rtol=1e-4)
    torch.manual_seed(0)
    without = trainer._sample(prompts)
    assert with_sharing[0] == without[0]
    torch.testing.assert_close(with_sharing[1], without[1], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("trainer_class", "config_class"),
    [(Seq2SeqRLOOTrainer, RLOOConfig), (Seq2SeqGRPOTrainer, GRPOConfig)],
)
@pytest.mark.parametrize("family", FAMILIES)
def test_what_sampling_encoded_trains_as_a_pass_of_its_own_does(
    trainer_class, config_class, family, tmp_path, monkeypatch
):
    # Not Adam: it makes a whole step of a gradient that is nothing but rounding.
    options = {"max_steps": 3, "num_iterations": 2, "beta": 0.05, "optim": "sgd"}

    def weights_after_training(name: str) -> dict[str, torch.Tensor]:
        adapter = None if family == "bart" else lora()  # of one family all weights are trained
        trainer = build_trainer(
            build_model(family),
            tmp_path / name,
            trainer_class,
            config_class,
            {"peft_config": adapter},
            **options,
        )
        trainer.train()
        assert trainer._encoding is None
        return parameters_of(trainer.model)

    kept = weights_after_training("kept")
    monkeypatch.setattr(trainer_class, "_is_encoded_for_loss", False)
    anew = weights_after_training("anew")
    torch.testing.assert_close(kept, anew, atol=1e-6, rtol=1e-5)


def test_prompts_that_all_differ_are_not_encoded_twice(tmp_path):
    # As on each of as many processes as a group has completions.
    trainer = build_trainer(build_model("t5"), tmp_path)
    rows: list[int] = []
    count_rows(first_encoder_layer(trainer.model), rows)
    sample(trainer, PROMPTS)
    assert trainer._encoding is None
    assert rows == [4]
    sample(trainer, PROMPTS * 2)
    assert trainer._encoding is not None
    assert rows == [4, 4]


@pytest.mark.parametrize(
    ("modules", "options", "passes"),
    [
        ("all-linear", {}, 2),  # for sampling and the loss; for the anchor
        (r".*decoder.*(\.q|q_proj)", {}, 1),  # the anchor's encoder is the same
        ("all-linear", {"beta": 0.0}, 1),
        ("all-linear", {"activation_checkpointing": True}, 3),  # the loss encodes for itself
        ("all-linear", {"gradient_accumulation_steps": 2}, 5),  # sampling; twice anchor and loss
    ],
)
def test_passes_of_the_encoder_in_a_step(modules, options, passes, tmp_path):
    adapter = lora(target_modules=modules)
    trainer = build_trainer(
        build_model("t5"), tmp_path, options={"peft_config": adapter}, max_steps=1, **options
    )
    rows: list[int] = []
    count_rows(first_encoder_layer(trainer.model), rows)
    trainer.train()
    assert len(rows) == passes


@pytest.mark.parametrize("family", ["t5", "mt5", "bart", "mbart"])
def test_queries_of_a_product_read_its_keys_once(family, tmp_path, monkeypatch):
    trainer = build_trainer(build_model(family), tmp_path)
    rows: list[int] = []  # of keys, at each attention

    def counting(module: Any, query: Any, key: Any, *args: Any, **options: Any) -> Any:
        rows.append(len(key))
        return sdpa_attention_forward(module, query, key, *args, **options)

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, "sdpa", counting)
    trainer._sample(trainer._tokenize_prompts(PROMPTS[:2] * 4)[0])
    # The encoder's 2 layers on 2 rows; for each token a layer's 8 own rows, and 2 of the encoder's.
    assert set(rows) == {2, 8}
    assert rows.count(2) == 2 + rows.count(8)
    assert ALL_ATTENTION_FUNCTIONS["sdpa"] is counting  # nothing left behind


def test_old_scores_from_sampling_train_as_a_pass_of_their_own_does(tmp_path, monkeypatch):
    def weights_after_training(name: str) -> dict[str, torch.Tensor]:
        # Not Adam: it makes a whole step of a gradient that is nothing but rounding.
        options = {"num_iterations": 2, "pad_to_multiple_of": 8, "max_steps": 4, "optim": "sgd"}
        trainer = build_trainer(build_model("t5"), tmp_path / name, **options)
        trainer.train()
        return parameters_of(trainer.model)

    sampled = weights_after_training("sampled")
    sample_alone = Seq2SeqRLOOTrainer._sample
    monkeypatch.setattr(
        Seq2SeqRLOOTrainer, "_sample", lambda self, ids: (sample_alone(self, ids)[0], None)
    )
    scored = weights_after_training("scored")
    start = parameters_of(build_model("t5"))
    assert any(not weight.equal(start[name]) for name, weight in scored.items())
    torch.testing.assert_close(sampled, scored, atol=1e-5, rtol=1e-4)


def test_below_float32_old_scores_are_a_pass_of_their_own_off_policy(tmp_path):
    options = {"num_iterations": 2, "max_steps": 2, "bf16": True}
    trainer = build_trainer(build_model("t5"), tmp_path, **options)
    rows: list[int] = []
    count_rows(first_encoder_layer(trainer.model), rows)
    trainer.train()
    # Sampling and the loss, old scores, the loss again; the reference has its own encoder.
    assert rows == [2, 2, 2]


def test_below_float32_ratios_are_1_on_policy_without_that_pass(tmp_path):
    options = {"gradient_accumulation_steps": 2, "max_steps": 2, "epsilon": 1e-9, "bf16": True}
    trainer = build_trainer(build_model("t5"), tmp_path, **options)
    rows: list[int] = []
    count_rows(first_encoder_layer(trainer.model), rows)
    trainer.train()
    assert len(rows) == 2 * (1 + 2)  # each step samples once, for two batches of the loss
    for entry in trainer.state.log_history[:-1]:
        assert entry["clip_ratio/region_mean"] == 0
        assert entry["grad_norm"] > 0
    assert trainer.state.log_history[0]["kl"] == pytest.approx(0, abs=0.05)


def test_gradients_on_policy_are_those_of_a_pass_for_old_scores(tmp_path, monkeypatch):
    def weights_after_training(name: str) -> torch.Tensor:
        # Not Adam: it makes a whole step of a gradient that is nothing but rounding.
        options = {"max_steps": 3, "optim": "sgd", "bf16": True}
        trainer = build_trainer(build_model("t5"), tmp_path / name, **options)
        trainer.train()
        return parameters_to_vector(trainer.model.parameters()).detach()

    saved = weights_after_training("saved")
    monkeypatch.setattr(Seq2SeqRLOOTrainer, "_is_on_policy", False)
    taken = weights_after_training("taken")
    start = parameters_to_vector(build_model("t5").parameters()).detach()
    # The pass of its own rounds otherwise than the loss: a thousandth in the ratios.
    assert (saved - taken).norm() < 0.02 * (taken - start).norm()


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_bfloat16_casts_a_frozen_weight_once(family, tmp_path, monkeypatch):
    def casts(name: str) -> int:
        model = build_model(family)
        shapes = {m.weight.shape for m in model.modules() if isinstance(m, torch.nn.Linear)}
        trainer = build_trainer(
            model, tmp_path / name, options={"peft_config": lora()}, max_steps=2, bf16=True
        )
        with CastCounter(shapes.__contains__) as counter:
            trainer.train()
        assert {p.dtype for p in trainer.model.parameters()} == {torch.float32}
        return counter.casts

    linear = sum(isinstance(m, torch.nn.Linear) for m in build_model(family).modules())
    assert casts("once") == linear
    use_plain_linear(monkeypatch)
    assert casts("each") > 10 * linear


def test_bfloat16_logits_are_not_copied_to_float32(tmp_path):
    model = build_model("t5")
    trainer = build_trainer(
        model, tmp_path, options={"peft_config": lora()}, max_steps=2, bf16=True
    )

    def is_table(shape: torch.Size) -> bool:  # (B, C, V)
        return len(shape) == 3 and shape[-1] == model.config.vocab_size

    with CastCounter(is_table, torch.float32) as counter:
        trainer.train()
    assert counter.casts == 0
    # What the counter counts: accelerate's copy, where nothing takes the logits before it.
    rows = torch.tensor([[5, 6, 1]])
    with CastCounter(is_table, torch.float32) as counter:
        trainer.model(input_ids=rows, decoder_input_ids=rows)
    assert counter.casts == 1


@pytest.mark.parametrize("family", ["t5", "bart"])
@pytest.mark.parametrize("adapter", [None, lora])
def test_packed_weights_train_the_same_model(family, adapter, tmp_path, monkeypatch):
    def train(name: str) -> dict[str, torch.Tensor]:
        trainer = build_trainer(
            build_model(family),
            tmp_path / name,
            options={"peft_config": adapter and adapter()},
            max_steps=2,
            optim="sgd",  # Adam makes whole steps of rounding
        )
        trainer.train()
        assert not any("forward" in vars(part) for part in trainer.model.modules())
        return parameters_of(trainer.model)

    packed = train("packed")
    use_plain_linear(monkeypatch)
    for name, weight in train("plain").items():
        torch.testing.assert_close(packed[name], weight, atol=1e-5, rtol=1e-3)


def use_plain_linear(monkeypatch):
    for user in (seq2seq_trainer, sampling):
        monkeypatch.setattr(user, "frozen_linear", lambda model, dtype: nullcontext())


@pytest.mark.parametrize("family", ["t5", "bart"])
@pytest.mark.parametrize(("name", "adapter"), [("rloo", None), ("rloo", lora), ("grpo", lora)])
def test_nothing_is_clipped_on_policy(name, family, adapter, tmp_path):
    # The configs' dropout rates are 0.1 to 0.3; any left on moves ratios by far more than 1e-4.
    trainer = build_trainer(
        build_model(family),
        tmp_path,
        *TRAINERS[name],
        options={"peft_config": adapter and adapter()},
        epsilon=1e-4,
        gradient_accumulation_steps=2,
    )
    trainer.train()
    assert trainer.model.training
    for entry in trainer.state.log_history[:-1]:
        assert entry["clip_ratio/region_mean"] == 0
    assert trainer.state.log_history[0]["kl"] == pytest.approx(0, abs=1e-5)
    assert trainer.state.log_history[1]["grad_norm"] > 0


@pytest.mark.parametrize("name", TRAINERS)
def test_an_adapters_own_dropout_is_off(name, tmp_path):
    # The rate is .1; above, an adapter's old scores are the sampled ones and would not tell.
    options = {"peft_config": lora()}
    trainer = build_trainer(build_model("t5"), tmp_path, *TRAINERS[name], options=options)
    for weight_name, weight in trainer.model.named_parameters():
        if "lora_B" in weight_name:
            torch.nn.init.normal_(weight)
    prompts, completions = sample(trainer)
    trainer.model.train()
    first, second = (score(trainer, prompts, completions)[0] for _ in range(2))
    assert first.equal(second)


@pytest.mark.parametrize("family", FAMILIES)
def test_dropout_is_off_in_train_mode_and_kept_in_the_config(family):
    model = build_model(family).train()
    rates = {k: v for k, v in model.config.to_dict().items() if "drop" in k}
    disable_dropout(model)
    ids = torch.tensor([[5, 6, 7, EOS]])
    torch.manual_seed(0)
    first, second = (model(input_ids=ids, decoder_input_ids=ids).logits for _ in range(2))
    assert first.equal(second)
    assert {k: v for k, v in model.config.to_dict().items() if "drop" in k} == rates


def test_only_the_adapter_moves_and_it_reloads(tmp_path):
    trainer = build_trainer(build_model("t5"), tmp_path, options={"peft_config": lora()})
    before = parameters_of(trainer.model)
    trainer.train()
    moved = {n for n, p in trainer.model.named_parameters() if not p.equal(before[n])}
    assert moved and all("lora_" in name for name in moved)

    trainer.save_model(tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["task_type"] == "SEQ_2_SEQ_LM"
    reloaded = PeftModel.from_pretrained(build_model("t5"), tmp_path / "adapter").eval()
    ids = torch.tensor([[5, 6, EOS]])
    logits = [
        m.eval()(input_ids=ids, decoder_input_ids=ids).logits for m in (trainer.model, reloaded)
    ]
    torch.testing.assert_close(*logits)


@pytest.mark.parametrize("name", TRAINERS)
def test_a_given_adapter_is_anchored_to_the_model_below_it(name, tmp_path, monkeypatch):
    torch.manual_seed(1)
    given = get_peft_model(build_model("t5"), lora(init_lora_weights=False))
    given.save_pretrained(tmp_path / "given")
    model = PeftModel.from_pretrained(build_model("t5"), tmp_path / "given", is_trainable=True)
    trainer = build_trainer(model, tmp_path / "run", *TRAINERS[name], max_steps=1)
    assert set(model.peft_config) == {"default"} and trainer.ref_model is None

    calls = []
    own = trainer._get_per_token_logps_and_entropies

    def recording(model, *args, **kwargs):
        result = own(model, *args, **kwargs)
        calls.append((model.base_model.model.lm_head, model.get_model_status().enabled, result[0]))
        return result

    monkeypatch.setattr(trainer, "_get_per_token_logps_and_entropies", recording)
    trainer.train()
    enabled = [call[1] for call in calls]
    assert enabled == ([True, False, True] if name == "rloo" else [False, True])
    reference, policy = calls[-2][2], calls[-1][2]
    assert (reference.sum() - policy.sum()).abs() > 0.1  # the adapter does something
    assert abs(trainer.state.log_history[0]["kl"]) > 1e-3

    trainer.save_model(tmp_path / "saved")
    assert not [path for path in (tmp_path / "saved").iterdir() if path.is_dir()]
    saved = PeftModel.from_pretrained(build_model("t5"), tmp_path / "saved")
    assert set(saved.peft_config) == {"default"}


@pytest.mark.parametrize("name", TRAINERS)
def test_full_fine_tuning_moves_the_model_and_not_its_reference(name, tmp_path):
    # Changed in memory, and never saved: the reference is this very model, not one found by name.
    model = build_model("t5")
    torch.nn.init.normal_(model.lm_head.weight, std=0.3)
    before = parameters_of(model)
    trainer = build_trainer(model, tmp_path, *TRAINERS[name])
    trainer.train()
    assert not model.lm_head.weight.equal(before["shared.weight"])
    for key, value in trainer.ref_model.named_parameters():
        assert value.equal(before[key]) and not value.requires_grad
    assert "forward" not in vars(model)  # TRL's patch would follow into copies


def test_a_model_may_be_a_path_even_one_whose_config_names_no_head(tmp_path):
    path = tmp_path / "bart"
    build_model("bart").save_pretrained(path)
    build_tokenizer().save_pretrained(path)
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"architectures": ["BartModel"]}))
    trainer = build_trainer(str(path), tmp_path / "run", options={"processing_class": None})
    trainer.train()
    assert type(trainer.model).__name__ == type(trainer.ref_model).__name__
    trainer.save_model(tmp_path / "saved")
    # Sampling hides the checkpoint's generation settings; a saved model has them back.
    saved = json.loads((tmp_path / "saved" / "generation_config.json").read_text())
    assert saved["num_beams"] == 4


@pytest.mark.parametrize(("name", "adapter"), [("rloo", lora), ("grpo", None)])
def test_a_resumed_run_ends_where_the_uninterrupted_one_does(name, adapter, tmp_path):
    # Within one epoch: TRL's sampler does not replay the order of epochs before the checkpoint's.
    data = Dataset.from_dict({"prompt": PROMPTS * 2})

    def run(output_dir, **resume):
        trainer = build_trainer(
            build_model("t5"),
            output_dir,
            *TRAINERS[name],
            options={"peft_config": adapter and adapter(), "train_dataset": data},
            max_steps=4,
            save_strategy="steps",
            save_steps=2,
        )
        trainer.train(**resume)
        return parameters_of(trainer.model)

    whole = run(tmp_path / "whole")
    resumed = run(tmp_path / "resumed", resume_from_checkpoint=tmp_path / "whole" / "checkpoint-2")
    assert all(resumed[key].equal(value) for key, value in whole.items())


@pytest.mark.parametrize(("name", "family", "rate"), [("rloo", "t5", 5e-2), ("grpo", "bart", 1e-2)])
def test_the_reward_rises(name, family, rate, tmp_path):
    trainer = build_trainer(
        build_model(family), tmp_path, *TRAINERS[name], max_steps=30, learning_rate=rate
    )
    trainer.train()
    rewards = [entry["reward"] for entry in trainer.state.log_history if "reward" in entry]
    assert sum(rewards[-5:]) / 5 > sum(rewards[:3]) / 3 + 0.2, rewards


def test_grpos_entropy_bonus_has_gradients(tmp_path):
    norms = []
    for bonus in (0.0, 1.0):
        trainer = build_trainer(
            build_model("t5"), tmp_path, *TRAINERS["grpo"], beta=0.0, entropy_coef=bonus,
            options={"reward_funcs": lambda completions, **_: [0.5] * len(completions)},
        )  # fmt: skip
        trainer.train()
        norms.append([entry["grad_norm"] for entry in trainer.state.log_history if "loss" in entry])
    assert norms[0] == [0, 0] and min(norms[1]) > 0


def test_byt5_writes_and_scores_bytes(tmp_path):
    tokenizer = ByT5Tokenizer()
    prompts = ["Title: sofa", "Title: grüne Couch", "Title: lamp", "Title: " + "x" * 40]
    trainer = build_trainer(
        build_byt5(),
        tmp_path,
        options={
            "processing_class": tokenizer,
            "train_dataset": Dataset.from_dict({"prompt": prompts}),
            "peft_config": lora(),
        },
        max_steps=1,
    )
    ids, _, _ = trainer._tokenize_prompts(prompts)
    assert ids[1][:-1] == [byte + 3 for byte in "Title: grüne Couch".encode()][:15]
    assert [len(row) for row in ids] == [12, 16, 12, 16]  # bytes and the end token, cut at 16
    trainer.train()
    logged = trainer.state.log_history[0]
    assert logged["clip_ratio/region_mean"] == 0 and 0 <= logged["reward"] <= 1


def test_activation_checkpointing_changes_nothing(tmp_path):
    # TRL switches it on by default.
    ends = []
    for checkpointing in (False, True):
        trainer = build_trainer(
            build_model("bart"),
            tmp_path,
            options={"peft_config": lora()},
            activation_checkpointing=checkpointing,
        )
        trainer.train()
        ends.append(parameters_of(trainer.model))
    # Without it keys and values are made once a prompt, so the last digits differ.
    torch.testing.assert_close(*ends, atol=1e-4, rtol=0)


def test_blank_completions_train(tmp_path):
    model = build_model("bart")
    model.final_logits_bias[0, EOS] = 100.0
    seen = []

    def reward(completions, **kwargs):
        seen.extend(completions)
        return [0.0] * len(completions)

    trainer = build_trainer(model, tmp_path, options={"reward_funcs": reward})
    trainer.train()
    assert set(seen) == {""}
    assert trainer.state.log_history[-2]["completions/max_length"] == 1


def test_evaluation_and_prompt_limit(tmp_path):
    data = Dataset.from_dict({"prompt": PROMPTS})
    trainer = build_trainer(
        build_model("t5"), tmp_path, options={"eval_dataset": data, "max_prompt_tokens": 4}
    )
    assert 0 <= trainer.evaluate()["eval_reward"] <= 1
    assert trainer._tokenize_prompts([PROMPTS[2]])[0] == [[7, 8, 9, EOS]]
    trainer.max_prompt_tokens = None
    assert trainer._tokenize_prompts([PROMPTS[2]])[0] == [[*range(7, 15), EOS]]


def test_a_prompt_without_tokens_is_named(tmp_path):
    trainer = build_trainer(build_model("t5"), tmp_path)
    trainer.processing_class.backend_tokenizer.post_processor = None
    with pytest.raises(ValueError, match="has no tokens"):
        trainer._tokenize_prompts(["w4", ""])


def test_kl_is_on_by_default(caplog, tmp_path):
    assert RLOOConfig.beta == Seq2SeqGRPOConfig.beta == 0.05
    build_trainer(build_model("t5"), tmp_path, Seq2SeqGRPOTrainer, GRPOConfig)
    assert "`beta` is 0" in caplog.text


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"top_k": 50}, "top_k"),
        ({"top_p": 0.9}, "top_p"),
        ({"min_p": 0.1}, "min_p"),
        ({"repetition_penalty": 1.2}, "repetition_penalty"),
        ({"temperature": 0.0}, "temperature"),
        ({"generation_kwargs": {"num_beams": 2}}, "generation_kwargs"),
        ({"chat_template_kwargs": {"x": 1}}, "chat_template_kwargs"),
        ({"use_vllm": True}, "use_vllm"),
        ({"use_transformers_continuous_batching": True}, "use_transformers_continuous_batching"),
        ({"use_liger_kernel": True}, "use_liger_kernel"),
        ({"sync_ref_model": True}, "sync_ref_model"),
        ({"router_aux_loss_coef": 0.1}, "router_aux_loss_coef"),
        ({"torch_compile": True}, "torch_compile"),
        ({"max_completion_length": 64}, "max_completion_length"),
    ],
)
def test_unsupported_arguments_are_named(arguments, named, tmp_path):
    with pytest.raises(ValueError, match=f"`{named}`"):
        build_trainer(build_model("bart"), tmp_path, **arguments)


@pytest.mark.parametrize("option", ["tools", "rollout_func", "environment_factory"])
def test_unsupported_grpo_options_are_named(option, tmp_path):
    with pytest.raises(ValueError, match=f"`{option}`"):
        build_trainer(build_model("t5"), tmp_path, *TRAINERS["grpo"], options={option: [print]})


@pytest.mark.parametrize("launcher", ["FSDP", "DEEPSPEED"])
def test_sharding_by_the_launcher_is_refused(launcher, tmp_path, monkeypatch):
    args = RLOOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False)
    monkeypatch.setenv(f"ACCELERATE_USE_{launcher}", "true")
    with pytest.raises(ValueError, match=f"`{launcher.lower()}`"):
        Seq2SeqRLOOTrainer(build_model("t5"), len, args)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"peft_config": LoraConfig(task_type="CAUSAL_LM")}, "SEQ_2_SEQ_LM"),
        ({"peft_config": LoraConfig()}, "SEQ_2_SEQ_LM"),
        (
            {"peft_config": PromptTuningConfig(task_type="SEQ_2_SEQ_LM", num_virtual_tokens=2)},
            "use LoRA",
        ),
        (
            {"peft_config": LoraConfig(task_type="SEQ_2_SEQ_LM", bias="all")},
            "bias 'all' .*`beta: 0`",
        ),
        (
            {"peft_config": LoraConfig(task_type="SEQ_2_SEQ_LM", init_lora_weights="pissa")},
            "init_lora_weights 'pissa', which change the model below",
        ),
        ({"train_dataset": None}, "prompt"),
        (
            {"train_dataset": Dataset.from_dict({"prompt": ["a"]})},
            "a batch of 8 queries asks for 2 prompts, and there are 1; lower `per_device",
        ),
        ({"train_dataset": Dataset.from_dict({"text": ["a"]})}, "prompt"),
        ({"train_dataset": Dataset.from_dict({"prompt": [[{"role": "user"}]]})}, "chat"),
        ({"train_dataset": Dataset.from_dict({"prompt": ["a"], "image": [0]})}, "images"),
        ({"eval_dataset": {"dev": Dataset.from_dict({"text": ["a"]})}}, r"eval_dataset\['dev'\]"),
        ({"processing_class": object()}, "tokenizer"),
        ({"quantization_config": object()}, "quantization_config"),
        ({"max_prompt_tokens": 64}, "32 positions"),
    ],
)
def test_unsupported_inputs_are_refused(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        build_trainer(build_model("bart"), tmp_path, options=options)


def test_a_model_by_name_and_its_tokenizer_are_of_one_revision(tmp_path, monkeypatch):
    build_model("t5").save_pretrained(tmp_path / "model")
    asked = []

    def from_pretrained(name, **options):
        asked.append(options.get("revision"))
        return build_tokenizer()

    monkeypatch.setattr(seq2seq_trainer.AutoTokenizer, "from_pretrained", from_pretrained)
    for given in ({"revision": "main"}, None):
        build_trainer(
            str(tmp_path / "model"), tmp_path, options={"processing_class": None},
            model_init_kwargs=given,
        )  # fmt: skip
    assert asked == ["main", None]


def test_checkpoints_of_a_partly_frozen_model_hold_its_own_weights(tmp_path):
    model = build_model("t5")
    model.get_encoder().requires_grad_(False)
    own = {name: value.clone() for name, value in model.get_encoder().state_dict().items()}
    trainer = build_trainer(model, tmp_path, bf16=True, save_strategy="steps", save_steps=1)
    trainer.train()
    saved = type(model).from_pretrained(tmp_path / "checkpoint-1").get_encoder().state_dict()
    for name, value in own.items():
        torch.testing.assert_close(saved[name], value, rtol=0, atol=0)


def test_a_tokenizer_without_an_end_token_is_refused(tmp_path):
    tokenizer = build_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="no end token; set its `eos_token`"):
        build_trainer(build_model("t5"), tmp_path, options={"processing_class": tokenizer})


def test_unsupported_models_are_refused(tmp_path):
    with pytest.raises(ValueError, match="encoder-decoder"):
        small = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
        build_trainer(
            BertLMHeadModel(BertConfig(vocab_size=24, is_decoder=True, **small)), tmp_path
        )
    with pytest.raises(ValueError, match="ProphetNet's dropout"):
        parts = ("encoder_layers", "encoder_attention_heads", "decoder_layers")
        sizes = dict.fromkeys((f"num_{part}" for part in (*parts, "decoder_attention_heads")), 1)
        config = ProphetNetConfig(vocab_size=24, hidden_size=8, **sizes)
        build_trainer(ProphetNetForConditionalGeneration(config), tmp_path)
    with pytest.raises(ValueError, match="fp16"):
        build_trainer(build_model("t5").half(), tmp_path)
    causal = get_peft_model(
        build_model("t5"), LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear")
    )
    with pytest.raises(ValueError, match="SEQ_2_SEQ_LM"):
        build_trainer(causal, tmp_path)
    frozen = get_peft_model(build_model("t5"), lora()).requires_grad_(False)
    with pytest.raises(ValueError, match="is_trainable"):
        build_trainer(frozen, tmp_path)
    two = get_peft_model(build_model("t5"), lora())
    two.add_adapter("ref", lora())
    with pytest.raises(ValueError, match="ref"):
        build_trainer(two, tmp_path)


def test_a_mixture_of_experts_is_refused(tmp_path):
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2}
    config = SwitchTransformersConfig(vocab_size=24, num_experts=2, **sizes)
    with pytest.raises(ValueError, match="a mixture of experts scores otherwise than it samples"):
        build_trainer(SwitchTransformersForConditionalGeneration(config), tmp_path)


def test_a_decoder_that_reads_more_of_the_encoder_than_its_states(tmp_path):
    # LED's reads `global_attentions` of what the encoder gave.
    sides = {"layers": 1, "attention_heads": 2, "ffn_dim": 32}
    sizes = {f"{side}_{k}": v for side in ("encoder", "decoder") for k, v in sides.items()}
    positions = {f"max_{side}_position_embeddings": 32 for side in ("encoder", "decoder")}
    config = LEDConfig(
        vocab_size=24, d_model=16, attention_window=4, pad_token_id=PAD, eos_token_id=EOS,
        bos_token_id=BOS, decoder_start_token_id=BOS, **sizes, **positions,
    )  # fmt: skip
    model = LEDForConditionalGeneration(config)
    trainer = build_trainer(model, tmp_path, max_steps=1)
    trainer.train()
    assert trainer.state.log_history[0]["clip_ratio/region_mean"] == 0


def test_a_pair_of_two_models_trains_with_an_adapter(tmp_path):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    parts = [BertConfig(vocab_size=24, intermediate_size=32, **sizes) for _ in range(2)]
    config = EncoderDecoderConfig.from_encoder_decoder_configs(*parts)
    config.decoder_start_token_id, config.pad_token_id, config.eos_token_id = BOS, PAD, EOS
    model = EncoderDecoderModel(config)
    trainer = build_trainer(model, tmp_path, options={"peft_config": lora()}, max_steps=1)
    trainer.train()
    assert trainer.state.log_history[0]["grad_norm"] > 0


def test_a_forced_first_token_takes_a_position(tmp_path):
    model = build_model("bart")
    model.generation_config.forced_bos_token_id = BOS
    assert len(decoder_prefix(model)) == 2
    with pytest.raises(ValueError, match="is 32, but the model has 31 positions for it"):
        build_trainer(model, tmp_path, max_completion_length=32)
    build_trainer(model, tmp_path, max_completion_length=31)


def test_a_reward_sees_the_pieces_that_the_tokenizer_does_not_know(tmp_path):
    seen = []

    def reward(completions, **_):
        seen.extend(completions)
        return [0.0] * len(completions)

    trainer = build_trainer(build_model("t5"), tmp_path, options={"reward_funcs": reward})
    ids = [[4, UNK, 5, EOS], [6, EOS]]
    texts = trainer.processing_class.batch_decode(ids, skip_special_tokens=True)
    assert texts == ["w4 w5", "w6"]
    inputs = [{"prompt": PROMPTS[0]}] * 2
    trainer._calculate_rewards(inputs, [PROMPTS[0]] * 2, texts, ids)
    assert seen == ["w4 \ufffd w5", "w6"]


def test_printed_completions_give_no_order_to_the_terminal(tmp_path, capsys):
    trainer = build_trainer(build_model("t5"), tmp_path, log_completions=True, max_steps=1)
    trainer._logs["prompt"].append("w4 \x1b[31m")
    trainer._logs["completion"].append("\x1b]0;w5\x07")
    trainer._logs["rewards"]["odd"].append(1.0)
    trainer._logs["advantages"].append(0.0)
    trainer.log({})
    shown = capsys.readouterr().out
    assert "[U+001B]" in shown and "\x1b" not in shown and "\x07" not in shown
