"""A trained model and its frozen self: low-rank adapters that add nothing or are off for a while, and no dropout.

With adapters that add nothing yet, the frozen model is the trained one without them: no second copy. Knows modules of
torch and of peft alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


def adapters_add_nothing(model: nn.Module) -> bool:
    """Whether a model has low-rank adapters and they leave it as it is, as fresh ones do: one factor is zero."""
    factors = [weight for name, weight in model.named_parameters() if "lora_B" in name or "lora_embedding_B" in name]
    return bool(factors) and not any(weight.any() for weight in factors)


def silence_adapters(model: nn.Module) -> None:
    """Let low-rank adapters add nothing, as fresh ones do."""
    for name, weight in model.named_parameters():
        if "lora_B" in name or "lora_embedding_B" in name:
            weight.data.zero_()


@contextmanager
def without_adapters(model: nn.Module) -> Iterator[nn.Module]:
    """The model without its low-rank adapters, in evaluation mode, for a while."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield model
    finally:
        for layer in layers:
            layer.enable_adapters(True)  # which has them trained again
        for module, training in modes:
            module.training = training


def silence_dropout(model: nn.Module) -> None:
    """Take all dropout out of a model: its layers, and the rates that modules hand to functions."""
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
        for name, value in vars(module).items():
            if "drop" in name and isinstance(value, float):
                setattr(module, name, 0.0)
