import math

import pytest
import torch

from agr_trl.token_scores import token_scores


def test_two_tokens_by_hand():
    # softmax([0, log 3] / 1) = [1/4, 3/4]; H = (1/4) log 4 + (3/4) log (4/3).
    logits = torch.tensor([[[0.0, math.log(3)]]], requires_grad=True)
    logps, entropies = token_scores(logits, torch.tensor([[1]]), 1.0)
    assert logps.item() == pytest.approx(math.log(3 / 4))
    assert entropies.item() == pytest.approx(math.log(4) / 4 + 0.75 * math.log(4 / 3))
    logps.sum().backward()
    assert logits.grad.flatten().tolist() == pytest.approx([-1 / 4, 1 / 4])
    assert not entropies.requires_grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("temperature", [0.7, 1.0, 2.0])
def test_scores_and_gradients_are_those_of_log_softmax(dtype, temperature):
    torch.manual_seed(0)
    logits = (20 * torch.randn(5, 9, 33)).to(dtype)  # 45 rows: two whole blocks and a part
    tokens = torch.randint(33, (5, 9))
    weights = torch.randn(5, 9)
    ours, plain = (logits.clone().requires_grad_() for _ in range(2))
    logps, entropies = token_scores(ours, tokens, temperature)
    (logps * weights).sum().backward()
    table = (plain.float() / temperature).log_softmax(-1)
    expected = table.gather(-1, tokens[..., None])[..., 0]
    (expected * weights).sum().backward()
    torch.testing.assert_close(logps, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(entropies, -(table.exp() * table).sum(-1), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(ours.grad, plain.grad)
    assert logps.dtype == entropies.dtype == torch.float32


def test_a_token_that_cannot_be_has_no_share_in_the_entropy():
    logits = torch.tensor([[[0.0, 0.0, -1e9]]])
    logps, entropies = token_scores(logits, torch.tensor([[0]]), 1.0)
    assert -logps.item() == entropies.item() == pytest.approx(math.log(2))
