import pytest
import torch
from peft import get_peft_model
from seq2seq_models import (
    FAMILIES,
    PROMPTS,
    TRAINERS,
    build_model,
    build_trainer,
    lora,
    parameters_of,
)
from transformers import GenerationConfig

from agr_trl.head_gradients import HeadGradients, has_frozen_head
from agr_trl.sampling import GREEDY, sample_completions
from agr_trl.seq2seq_trainer import Seq2SeqRLOOTrainer, decoder_prefix

TEMPERATURE = 0.7


def decoder_rows(trainer, tokens):
    """Count the hidden states (B * C) that the head is given in each pass."""
    head = trainer.accelerator.unwrap_model(trainer.model).get_output_embeddings()
    head.register_forward_pre_hook(lambda _, args: tokens.append(args[0].shape[:-1].numel()))


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_and_entropies_are_those_of_the_whole_softmax(family):
    model = build_model(family).eval()
    ids = torch.tensor([[5, 6, 7, 1], [5, 6, 7, 1], [8, 9, 10, 1]])
    mask = torch.ones_like(ids)
    prefix = torch.tensor([decoder_prefix(model)] * 3)
    config = GenerationConfig(
        max_new_tokens=6, eos_token_id=1, pad_token_id=0, decoder_start_token_id=prefix[0, 0].item()
    )
    config.update(**GREEDY)
    head = HeadGradients()
    torch.manual_seed(0)
    tokens, logps = sample_completions(model, ids, mask, prefix, config, TEMPERATURE, head)
    drawn = head.of(logps)
    assert not any(module._forward_hooks for module in model.modules())  # nothing left behind

    states = []

    def keep(module, args, output):
        states.append(output.last_hidden_state)
        states[0].retain_grad()

    model.get_decoder().register_forward_hook(keep)
    given = torch.cat([prefix, tokens[:, :-1]], dim=1)
    logits = model(input_ids=ids, attention_mask=mask, decoder_input_ids=given).logits
    first = prefix.size(1) - 1
    softmax = (logits[:, first:] / TEMPERATURE).log_softmax(-1)  # (B, C, V)
    expected = softmax.gather(-1, tokens[..., None])[..., 0]
    expected.sum().backward()
    # A row that has ended is given pad tokens, but what it drew is another token.
    is_open = tokens.eq(1).cumsum(1) - tokens.eq(1).long() == 0
    assert is_open.sum() > 6
    entropies = -(softmax.exp() * softmax).sum(-1)
    for found, by_hand in (
        (drawn.logps, expected),
        (drawn.entropies, entropies),
        (drawn.gradients, states[0].grad[:, first:]),
    ):
        torch.testing.assert_close(found[is_open], by_hand[is_open].detach(), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("name", TRAINERS)
@pytest.mark.parametrize("family", ["t5", "flan-t5", "bart", "t5gemma"])
@pytest.mark.parametrize(
    "options",
    [
        {"num_iterations": 2},
        {"gradient_accumulation_steps": 2, "pad_to_multiple_of": 8},
    ],
    ids=["used twice", "accumulated"],
)
def test_the_loss_without_its_head_trains_the_same_adapter(
    options, family, name, tmp_path, monkeypatch
):
    trainer_class, config_class = TRAINERS[name]

    def train(place):
        # Not Adam: it makes a whole step of a gradient that is nothing but rounding.
        trainer = build_trainer(
            build_model(family),
            tmp_path / place,
            trainer_class,
            config_class,
            {"peft_config": lora()},
            **({"max_steps": 4, "beta": 0.05, "optim": "sgd", "learning_rate": 0.1} | options),
        )
        tokens = []
        decoder_rows(trainer, tokens)
        trainer.train()
        assert trainer._drawn is None
        logged = [
            (entry["entropy"], entry["grad_norm"]) for entry in trainer.state.log_history[:-1]
        ]
        return parameters_of(trainer.model), torch.tensor(logged), tokens

    weights, logged, tokens = train("drawn")
    monkeypatch.setattr(trainer_class, "_is_drawn_for_loss", False)
    plain_weights, plain_logged, plain_tokens = train("scored")
    torch.testing.assert_close(weights, plain_weights, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(logged, plain_logged, atol=1e-5, rtol=1e-3)
    assert logged.gt(0).all()
    # Each sample's first use in the loss gives the head one state, not 8 rows of tokens.
    first_uses = (
        4 * options.get("gradient_accumulation_steps", 1) // options.get("num_iterations", 1)
    )
    assert tokens.count(1) == first_uses
    assert 1 not in plain_tokens
    assert len(tokens) == len(plain_tokens)


def test_below_float32_the_head_is_left_out_where_samples_are_used_once(tmp_path):
    def heads(place, **options):
        trainer = build_trainer(
            build_model("t5"),
            tmp_path / place,
            options={"peft_config": lora()},
            bf16=True,
            **options,
        )
        tokens = []
        decoder_rows(trainer, tokens)
        trainer.train()
        return tokens.count(1)

    assert heads("once", max_steps=2) == 2
    assert heads("again", max_steps=2, num_iterations=2) == 0


def test_bfloat16_gradients_differ_by_its_rounding(tmp_path, monkeypatch):
    def train(place):
        trainer = build_trainer(
            build_model("t5"),
            tmp_path / place,
            options={"peft_config": lora()},
            bf16=True,
            optim="sgd",
        )
        trainer.train()
        learned = parameters_of(trainer.model)
        return torch.cat([w.flatten() for name, w in learned.items() if "lora" in name])

    drawn = train("drawn")
    monkeypatch.setattr(Seq2SeqRLOOTrainer, "_is_drawn_for_loss", False)
    scored = train("scored")
    torch.manual_seed(0)
    trainer = build_trainer(build_model("t5"), tmp_path, options={"peft_config": lora()}, bf16=True)
    start = parameters_of(trainer.model)
    start = torch.cat([w.flatten() for name, w in start.items() if "lora" in name])
    assert (drawn - scored).norm() < 0.05 * (scored - start).norm()


@pytest.mark.parametrize("family", ["t5", "flan-t5", "bart", "t5gemma"])
def test_a_head_that_is_trained_is_known(family):
    assert not has_frozen_head(build_model(family))  # T5's and BART's is the embedding
    assert has_frozen_head(get_peft_model(build_model(family), lora()))
    model = build_model(family)
    name = next(n for n, part in model.named_modules() if part is model.get_output_embeddings())
    adapted = get_peft_model(model, lora(target_modules=["q", "q_proj", name]))
    assert not has_frozen_head(adapted)


def test_full_fine_tuning_scores_with_the_head(tmp_path):
    trainer = build_trainer(build_model("t5"), tmp_path, max_steps=1)
    tokens = []
    decoder_rows(trainer, tokens)
    trainer.train()
    assert 1 not in tokens
    assert tokens[-1] >= len(PROMPTS[:2]) * 4  # the loss, of 8 rows
