import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import Linear as LoraLinear
from torch import nn

from agr_trl.frozen_linear import frozen_linear, merged_adapters


def layers() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3, bias=False))


# At most 64 rows take their gradients by a weight that is packed the other way round.
@pytest.mark.parametrize("shape", [(5,), (4, 5), (2, 4, 5), (0, 5), (3, 30, 5)])
def test_outputs_and_gradients_are_those_of_plain_layers(shape):
    frozen = layers().requires_grad_(False)
    frozen[0].bias.requires_grad_(True)  # as with PEFT's `bias="all"`
    plain = copy.deepcopy(frozen)
    states = torch.randn(shape, requires_grad=True)
    same = states.detach().clone().requires_grad_(True)
    with frozen_linear(frozen):
        output = frozen(states)
        output.square().sum().backward()
    expected = plain(same)
    expected.square().sum().backward()
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close(states.grad, same.grad)
    torch.testing.assert_close(frozen[0].bias.grad, plain[0].bias.grad)
    assert frozen[0].weight.grad is None


def test_a_trained_layer_is_left_alone_until_no_gradients_are_taken():
    model = layers()
    model[2].requires_grad_(False)
    with frozen_linear(model):
        assert ["forward" in vars(part) for part in model] == [False, False, True]
        with torch.no_grad(), frozen_linear(model):
            assert ["forward" in vars(part) for part in model] == [True, False, True]
        assert ["forward" in vars(part) for part in model] == [False, False, True]
    assert not any("forward" in vars(part) for part in model)


@pytest.mark.parametrize("is_packed", [True, False])
def test_bfloat16_rounds_as_autocast_does_and_the_weights_come_back(is_packed, monkeypatch):
    if not is_packed:  # as on a processor whose oneDNN has no bfloat16
        monkeypatch.setattr("agr_trl.frozen_linear._can_pack", lambda dtype: False)
    frozen = layers().requires_grad_(False)
    before = {name: weight.clone() for name, weight in frozen.state_dict().items()}
    states = torch.randn(4, 5)
    with torch.autocast("cpu", torch.bfloat16):
        expected = frozen(states)
        with frozen_linear(frozen, torch.bfloat16):
            found = frozen(states)
            assert {part.weight.dtype for part in (frozen[0], frozen[2])} == {torch.bfloat16}
    assert found.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(found, expected)
    for name, weight in frozen.state_dict().items():
        assert weight.equal(before[name])


def test_a_forward_of_someone_elses_stays():
    model = layers().requires_grad_(False)
    model[0].forward = lambda states: states.new_ones(7)
    with frozen_linear(model):
        assert model[0](torch.zeros(5)).sum() == 7
    assert model[0](torch.zeros(5)).sum() == 7


def test_weights_come_back_after_an_error():
    model = layers().requires_grad_(False)
    weight = model[0].weight
    with pytest.raises(KeyError), frozen_linear(model, torch.bfloat16):
        raise KeyError
    assert model[0].weight is weight


def with_adapter(**options):
    """Return the two layers under a LoRA whose product is not 0."""
    config = LoraConfig(r=2, target_modules=["0", "2"], init_lora_weights=False, **options)
    return get_peft_model(layers(), config)


@pytest.mark.parametrize("is_packed", [True, False])
@torch.no_grad()
def test_merged_adapters_change_rounding_alone_and_leave_the_weights_untouched(
    is_packed, monkeypatch
):
    if not is_packed:
        monkeypatch.setattr("agr_trl.frozen_linear._can_pack", lambda dtype: False)
    model = with_adapter()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    states = torch.randn(4, 5)
    expected = model(states)
    with frozen_linear(model), merged_adapters(model):
        calls = [part.register_forward_hook(refuse) for part in adapter_parts(model)]
        found = model(states)
        for call in calls:
            call.remove()
    torch.testing.assert_close(found, expected)
    assert model(states).equal(expected)
    for name, weight in model.state_dict().items():
        assert weight.equal(before[name])


def adapter_parts(model):
    return [part for name, part in model.named_modules() if name.endswith(".default")]


def refuse(module, args, output):
    raise AssertionError("a LoRA's own layer was called")


@torch.no_grad()
def test_an_adapter_that_is_switched_off_stays_off():
    model = with_adapter()
    states = torch.randn(4, 5)
    with model.disable_adapter():
        expected = model(states)
        with merged_adapters(model):
            assert model(states).equal(expected)
    assert not model(states).allclose(expected)


@torch.no_grad()
def test_two_active_adapters_are_both_added():
    model = with_adapter()
    second = LoraConfig(r=3, target_modules=["0"], init_lora_weights=False)
    model.add_adapter("second", second)
    model.base_model.set_adapter(["default", "second"])
    states = torch.randn(4, 5)
    expected = model(states)
    with merged_adapters(model):
        torch.testing.assert_close(model(states), expected)


@torch.no_grad()
def test_other_adapters_and_weights_that_were_cast_are_left_as_they_are():
    for options in ({"use_dora": True}, {"lora_bias": True}):
        model = with_adapter(**options)
        with merged_adapters(model):
            assert not any("forward" in vars(part) for part in model.modules())
    model = with_adapter()
    with frozen_linear(model, torch.bfloat16), merged_adapters(model):
        layers = [part for part in model.modules() if isinstance(part, LoraLinear)]
        assert layers and not any("forward" in vars(layer) for layer in layers)
        assert all(layer.base_layer.weight.dtype == torch.bfloat16 for layer in layers)
