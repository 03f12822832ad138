"""A trained network as an MLflow model that loads without executing a pickle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .client import connect


def prepare() -> None:
    """Import what `save_model` needs."""
    connect("")
    import mlflow.pytorch  # noqa: F401
    import torch.export  # noqa: F401


def save_model(model: Any, example: Any, path: Path) -> None:
    """Export a network as an MLflow model with a signature: torch.export's archive, no pickled code.

    Args:
        model: a torch.nn.Module in evaluation mode, on the CPU.
        example: inputs for it, (N ≥ 2, …): a batch of one would fix the batch size.
        path: a directory that does not exist yet; `mlflow.pytorch.load_model(path)` and pyfunc read it.
    """
    connect("")  # quiet
    import mlflow.pytorch
    import torch
    from mlflow.models import infer_signature

    with torch.no_grad():
        signature = infer_signature(example.numpy(), model(example).numpy())
    mlflow.pytorch.save_model(
        model,
        str(path),
        signature=signature,
        input_example=example.numpy(),
        serialization_format="pt2",
        pip_requirements=["torch", "mlflow"],  # else a second process is started to find out
    )
