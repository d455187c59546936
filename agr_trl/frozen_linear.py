"""Cast, pack and add up the weights that do not change once, however often they are used."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property, partial
from typing import Any

import torch
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn

_FEW_ROWS = 64  # of which MKL multiplies less than half as fast as oneDNN


@contextmanager
def frozen_linear(model: nn.Module, dtype: torch.dtype = torch.float32) -> Iterator[None]:
    """Compute linear layers whose weights are frozen and float32 in `dtype`, inside this context.

    All are frozen where no gradients are taken. Results are those without this but for the order of
    sums; a layer's float32 weight comes back on leaving: nothing is merged into rounded ones.

    - To bfloat16, which autocast computes in, a weight is cast once. Autocast itself keeps what it
      has cast only of weights that are trained, and in inference mode of none (`cached_cast` in
      torch's autocast_mode.cpp): with LoRA nearly all were cast anew for every token. An embedding
      that shares the weight (T5's) keeps the float32 one.
    - On a CPU a weight is also laid out as oneDNN's kernels read it, which needs its size again and
      once more the other way round where gradients of few rows flow back. A float32 product that
      torch gives to MKL takes 1.1 to 2.5 times as long on AMD's processors, the most for the few
      rows of a decoding step. torch's own compiler packs so when it freezes
      (`torch/_inductor/fx_passes/mkldnn_fusion.py`), by the same two operators.
    """
    are_all_frozen = not torch.is_grad_enabled()
    own = {
        part: part.weight
        for part in model.modules()
        if type(part) is nn.Linear
        and "forward" not in vars(part)  # someone else's, or packed already
        and part.weight.dtype == torch.float32
        and (are_all_frozen or not part.weight.requires_grad)
    }
    can_pack = _can_pack(dtype)
    for part, weight in own.items():
        if dtype != torch.float32:
            part.weight = nn.Parameter(weight.to(dtype), requires_grad=False)
        if weight.device.type == "cpu" and can_pack:
            part.forward = _packed_forward(part.weight, part.bias)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for part, weight in own.items():
            part.weight = weight
            vars(part).pop("forward", None)


@contextmanager
def merged_adapters(model: nn.Module) -> Iterator[None]:
    """Compute linear layers and their LoRA in one float32 product each, without gradients.

    With W + s B A in the place of W, added up here and forgotten on leaving: W itself is never
    written, so nothing is lost to rounding however often this is entered. Of a decoding step of
    T5-small the LoRA's own small products are 4 %. Left as they are: other kinds of adapters
    (DoRA, biases), and weights that `frozen_linear` has cast, into which a small change would be
    rounded.
    """
    merged = [
        layer
        for layer in model.modules()
        if isinstance(layer, LoraLinear)
        and type(layer.base_layer) is nn.Linear
        and layer.base_layer.weight.dtype == torch.float32
        and not (layer.disable_adapters or layer.merged)
        and not (layer.lora_variant or any(layer.lora_bias.values()))
        and "forward" not in vars(layer)
    ]
    can_pack = _can_pack(torch.float32)
    for layer in merged:
        weight = layer.base_layer.weight.detach().clone()
        for name in layer.active_adapters:
            if name in layer.lora_A:
                weight += layer.get_delta_weight(name).detach()
        bias = layer.base_layer.bias
        if weight.device.type == "cpu" and can_pack:
            layer.forward = _packed_forward(weight, bias)
        else:
            layer.forward = partial(nn.functional.linear, weight=weight, bias=bias)
    try:
        yield
    finally:
        for layer in merged:
            del layer.forward


def _can_pack(dtype: torch.dtype) -> bool:
    """Say whether oneDNN packs weights of this type here; bfloat16 asks AVX-512 of a processor."""
    if not torch.backends.mkldnn.is_available():
        return False
    supports = {
        torch.bfloat16: torch.ops.mkldnn._is_mkldnn_bf16_supported,
        torch.float16: torch.ops.mkldnn._is_mkldnn_fp16_supported,
    }
    return dtype not in supports or bool(supports[dtype]())


def _packed_forward(plain: Tensor, bias: Tensor | None) -> Any:
    """Return a linear layer's forward, (..., in) to (..., out), that reads its weight packed."""
    weight = _PackedWeight(plain.detach())

    def forward(states: Tensor) -> Tensor:
        states = states.to(weight.plain.dtype)
        if torch.is_grad_enabled() and (
            states.requires_grad or (bias is not None and bias.requires_grad)
        ):
            return _PackedLinear.apply(states, weight, bias)
        return _product(states, weight.packed, bias)

    return forward


class _PackedWeight:
    """A frozen weight (out, in), and how oneDNN reads it."""

    def __init__(self, plain: Tensor) -> None:
        self.plain = plain
        self.packed = torch.ops.mkldnn._reorder_linear_weight(plain)

    @cached_property
    def transposed(self) -> Tensor:
        """The weight (in, out), packed when it is first asked for: its size once more."""
        return torch.ops.mkldnn._reorder_linear_weight(self.plain.t().contiguous())


def _product(states: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
    bias = None if bias is None else bias.detach().to(states.dtype)
    return torch.ops.mkldnn._linear_pointwise(states, packed, bias, "none", [], "")


class _PackedLinear(torch.autograd.Function):
    """A linear layer whose weight needs no gradient."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: _PackedWeight, bias: Tensor | None) -> Tensor:
        ctx.weight = weight
        return _product(states, weight.packed, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        by_row = gradient.reshape(-1, gradient.size(-1))
        of_states = None
        if ctx.needs_input_grad[0] and len(by_row) <= _FEW_ROWS:
            of_states = _product(gradient, ctx.weight.transposed, None)
        elif ctx.needs_input_grad[0]:
            of_states = gradient @ ctx.weight.plain
        of_bias = by_row.sum(0) if ctx.needs_input_grad[2] else None
        return of_states, None, of_bias
