from contextlib import nullcontext
from typing import Any

import pandas as pd
import pytest
import torch
from peft import LoraConfig, get_peft_model
from seq2seq_models import build_model, build_trainer, parameters_of
from torch.utils._python_dispatch import TorchDispatchMode
from toy_shop import DOCUMENTS, build_retriever, training_options, weights_of
from transformers import TrainingArguments
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from agr_trl.float32_attention import float32_attention
from agr_trl.retriever import retriever_trainer


class AttentionGradients(TorchDispatchMode):
    """Lists the types in which fused attention takes gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.types: list[torch.dtype] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default:
            self.types.append(args[0].dtype)
        return func(*args, **(kwargs or {}))


def gradients(family: str, context: Any) -> tuple[torch.Tensor, torch.Tensor, set[torch.dtype]]:
    """Return scores, an adapter's gradient and the types of attention's gradients."""
    torch.manual_seed(0)
    config = LoraConfig(
        task_type="SEQ_2_SEQ_LM", target_modules="all-linear", init_lora_weights=False
    )
    model = get_peft_model(build_model(family), config).eval()
    prompts = torch.tensor([[5, 6, 7, 1], [8, 9, 1, 0]])
    with AttentionGradients() as seen, torch.autocast("cpu", torch.bfloat16), context(model):
        output = model(
            input_ids=prompts,
            attention_mask=(prompts != 0).long(),
            decoder_input_ids=torch.tensor([[0, 5, 9], [0, 7, 7]]),
        )
        output.logits.float().log_softmax(-1)[..., 3].sum().backward()
    weights = [weight.grad.flatten() for weight in model.parameters() if weight.requires_grad]
    return output.logits, torch.cat(weights), set(seen.types)


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_gradients_are_those_of_bfloat16_to_its_rounding_and_taken_in_float32(family):
    logits, gradient, types = gradients(family, float32_attention)
    plain_logits, plain_gradient, plain_types = gradients(family, lambda model: nullcontext())
    assert types == {torch.float32}
    assert plain_types == {torch.bfloat16}
    assert logits.dtype == plain_logits.dtype
    assert (logits - plain_logits).norm() < 0.02 * plain_logits.norm()
    assert (gradient - plain_gradient).norm() < 0.03 * plain_gradient.norm()


@pytest.mark.parametrize("is_checkpointed", [False, True])
def test_training_takes_attentions_gradients_in_float32_unless_checkpointed(
    is_checkpointed, tmp_path
):
    options = {"max_steps": 1, "bf16": True, "activation_checkpointing": is_checkpointed}
    model = build_model("t5")
    start = parameters_of(build_model("t5"))
    trainer = build_trainer(
        model, tmp_path, options={"peft_config": LoraConfig(task_type="SEQ_2_SEQ_LM")}, **options
    )
    with AttentionGradients() as seen:
        trainer.train()
    # What is computed again in the backward pass has to be what was computed.
    assert set(seen.types) == {torch.bfloat16 if is_checkpointed else torch.float32}
    after = parameters_of(trainer.model.merge_and_unload())
    assert any(not weight.equal(start[name]) for name, weight in after.items())


def test_a_retriever_takes_attentions_gradients_in_float32_too(tmp_path):
    retriever = build_retriever()
    start = weights_of(retriever.model)
    options = training_options(tmp_path, max_steps=2, bf16=True, per_device_train_batch_size=2)
    pairs = pd.DataFrame({"query": ["red", "oak"], "document": DOCUMENTS[:2], "label": [1.0, 0.0]})
    trainer = retriever_trainer(
        retriever,
        TrainingArguments(**options),
        pairs,
        pairs,
        lambda _: {},
        without_dropout=True,  # torch attends with it by single products, of which none is fused
    )
    with AttentionGradients() as seen:
        trainer.train()
    # The last layer attends from one token alone, by a call of its own, which costs little.
    assert retriever.model.config.num_hidden_layers == 2
    assert seen.types == [torch.bfloat16, torch.float32] * 2
    after = weights_of(retriever.model)
    assert any(not weight.equal(start[name]) for name, weight in after.items())


def test_attention_is_exchanged_under_autocast_alone_and_comes_back():
    model, plain = build_model("t5"), ALL_ATTENTION_FUNCTIONS["sdpa"]
    with float32_attention(model):
        assert ALL_ATTENTION_FUNCTIONS["sdpa"] is plain
    with (
        pytest.raises(KeyError),
        torch.autocast("cpu", torch.bfloat16),
        float32_attention(model),
    ):
        assert ALL_ATTENTION_FUNCTIONS["sdpa"] is not plain
        raise KeyError
    assert ALL_ATTENTION_FUNCTIONS["sdpa"] is plain
