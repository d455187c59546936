"""Switch dropout off wherever a family keeps its rates."""

from torch import nn


def disable_dropout(model: nn.Module) -> None:
    """Set every dropout rate below `model` to 0, in place; the model's config keeps its rates.

    TRL's `disable_dropout` reaches `nn.Dropout` only. Families also hold rates as floats: T5's and
    BART's attention, BART's `activation_dropout` and `layerdrop`. With rate 0.1 a quarter of the
    sequences of a perfectly on-policy step were clipped.
    """
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
        for name, value in vars(module).items():
            if isinstance(value, float) and "drop" in name:
                setattr(module, name, 0.0)
