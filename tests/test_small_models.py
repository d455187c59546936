"""What small models can do before any training."""

import pytest
import torch
from toy_shop import DOCUMENTS

from agr_trl.small_models import _mirror, build_small_bert


def test_a_mirror_turns_one_direction_alone():
    side = torch.tensor([0.6, 0.8, 0.0])
    mirror = _mirror(side)
    along, across = 5 * side, torch.tensor([0.8, -0.6, 2.0])
    torch.testing.assert_close(mirror @ along, -along)
    torch.testing.assert_close(mirror @ across, across)


@pytest.mark.parametrize("seed", range(3))
def test_a_new_bert_attends_to_the_same_word_on_the_other_side(seed):
    torch.manual_seed(seed)
    model, tokenizer = build_small_bert(DOCUMENTS, width=128, layers=2, max_tokens=32)
    model.set_attn_implementation("eager")
    batch = tokenizer(["red lamp"], ["red desk chair"], return_tensors="pt")
    tokens = tokenizer.convert_ids_to_tokens(batch["input_ids"][0])
    assert tokens == ["[CLS]", "red", "lamp", "[SEP]", "red", "desk", "chair", "[SEP]"]
    with torch.no_grad():
        first, second = model.eval()(**batch, output_attentions=True).attentions
    to = first[0].mean(0)  # mean over heads, (8, 8): from token, to token
    assert to[1].argmax() == 4 and to[4].argmax() == 1 and to[1, 4] > 0.7
    assert to[2].argmax() == 2 and to[5].argmax() == 5 and to[2, 2] > 0.4  # not there: to itself
    # The layer above takes the mean of what the first one found.
    torch.testing.assert_close(second, torch.full_like(second, 1 / 8), atol=0.06, rtol=0)
