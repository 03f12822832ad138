"""Batch-norm statistics move once per step, at the unperturbed weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.batchnorm import _NormBase


def tracking_layers(model: nn.Module) -> list[_NormBase]:
    """The norm layers of a model that keep running statistics."""
    return [m for m in model.modules() if isinstance(m, _NormBase) and m.track_running_stats]


@contextmanager
def frozen_statistics(model: nn.Module | Sequence[_NormBase]) -> Iterator[None]:
    """Normalise by the batch, as in training, without moving running_mean, running_var or num_batches_tracked.

    SAM's second pass sees weights that are never used for prediction: its statistics must not enter the running
    ones. The outputs inside the context are those of training mode. The context nests, and restores on errors.

    Args:
        model: a model, or its `tracking_layers` where walking through the model at every step is too slow.

    Example:
        >>> import torch
        >>> model = torch.nn.BatchNorm1d(2)
        >>> with frozen_statistics(model):
        ...     _ = model(torch.randn(4, 2))
        >>> int(model.num_batches_tracked)
        0
    """
    layers = tracking_layers(model) if isinstance(model, nn.Module) else model
    # a training-mode norm layer that tracks nothing uses batch statistics and leaves its buffers alone
    before = [layer.track_running_stats for layer in layers]
    for layer in layers:
        layer.track_running_stats = False
    try:
        yield
    finally:
        for layer, was in zip(layers, before, strict=True):
            layer.track_running_stats = was
