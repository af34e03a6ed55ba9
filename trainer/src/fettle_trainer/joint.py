"""Losses made of all rows of a step at once, however the step is cut into micro-batches.

    vectors of every micro-batch ── loss of all ── gradient of each vector ── each micro-batch again, with it

The second pass draws the same dropout as the first (gradient caching, Gao et al. 2021): memory holds one
micro-batch, and the gradients are those of the whole step.

Legend: N sequences, B rows of a batch, L tokens, E width.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor

from .checkpoint import restore_rng, rng_tensors
from .collate import Batch
from .loss import LossSum
from .tasks import Objective

# Rows that are answers to each other in an evaluation: the same however memory cuts its batches.
EVALUATED_TOGETHER = 64


def joint_gradients(
    batches: Sequence[Batch],
    answer: Callable[[Batch], Tensor],
    losses: Callable[[Tensor, Batch], LossSum],
    *,
    num_losses: float,
) -> tuple[float, int]:
    """Leaves the gradients of the mean loss in the parameters; returns summed loss and number right."""
    together = _together(batches)
    if len(batches) == 1:
        loss = losses(answer(batches[0]), together)
        cast("Any", loss.total / num_losses).backward()
        return float(loss.total.detach()), loss.num_correct
    drawn = rng_tensors()
    with torch.no_grad():
        known = [answer(batch) for batch in batches]
    restore_rng(drawn)
    leaves = [vectors.detach().requires_grad_() for vectors in known]
    loss = losses(torch.cat(leaves), together)
    cast("Any", loss.total / num_losses).backward()
    for batch, leaf in zip(batches, leaves, strict=True):
        cast("Any", answer(batch)).backward(leaf.grad)
    return float(loss.total.detach()), loss.num_correct


def joint_loss(vectors_NE: Tensor, batches: Sequence[Batch], objective: Objective) -> tuple[float, int]:
    """Of an evaluation, in parts of so many rows."""
    whole = _together(batches)
    row_N = objective.row_of(whole)
    total, correct = 0.0, 0
    for start in range(0, int(row_N.max()) + 1, EVALUATED_TOGETHER):
        inside = (row_N >= start) & (row_N < start + EVALUATED_TOGETHER)
        part = replace(whole, targets_N=whole.targets_N[inside])
        loss = objective.loss(vectors_NE[inside], part, 0.0)
        total += float(loss.total)
        correct += loss.num_correct
    return total, correct


def _together(batches: Sequence[Batch]) -> Batch:
    return replace(batches[0], targets_N=torch.cat([batch.targets_N for batch in batches]))


def pooled(hidden_BLE: Tensor, batch: Batch, mode: str) -> Tensor:
    """N x E in fp32: the mean over each sequence's tokens, or its first token (`cls`)."""
    if mode == "cls":
        return hidden_BLE[:, 0].float()
    mask_BL1 = cast("Tensor", batch.attention_mask)[..., None].bool()
    kept = hidden_BLE.float().masked_fill(~mask_BL1, 0.0)
    return kept.sum(dim=1) / mask_BL1.sum(dim=1)
