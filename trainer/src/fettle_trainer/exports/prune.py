"""Magnitude pruning: the smallest weights of every linear layer become zero."""

from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D


@torch.no_grad()
def prune(model: Any, share: float) -> float:
    """Zeroes `share` of each inner linear layer, not of embeddings and heads. Returns the share of zeros."""
    zero, total = 0, 0
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    for name, module in cast("list[tuple[str, nn.Module]]", list(model.base_model.named_modules())):
        if not isinstance(module, nn.Linear | Conv1D) or module is head or name.endswith("pooler.dense"):
            continue
        weight = cast("Tensor", module.weight)
        count = round(share * weight.numel())
        if count:
            # Which of equal weights go is fixed by their place, never by chance.
            order = weight.abs().flatten().argsort(stable=True)
            weight.view(-1)[order[:count]] = 0
        zero += int((weight == 0).sum())
        total += weight.numel()
    return zero / total if total else 0.0
