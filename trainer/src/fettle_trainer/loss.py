"""Cross entropy of gathered positions, summed; the caller divides by the tokens of the whole window.

Legend: N labelled positions, V classes or vocabulary.
"""

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class LossSum:
    """`total`: summed loss in fp32, differentiable. `num_correct`: where the target had the highest logit."""

    total: Tensor
    num_correct: int


class _SummedCrossEntropy(torch.autograd.Function):
    """Overwrites the logits with their gradient, so that no second and third N x V buffer exists.

    Safe because the logits come from a linear map, whose backward does not read its own output.
    Loss of one position: (1 - e) * -log p[target] + e * mean_v(-log p[v]), e the smoothing factor.
    """

    @staticmethod
    def forward(ctx: Any, logits_NV: Tensor, targets_N: Tensor, smoothing: float) -> tuple[Tensor, Tensor]:
        logits = logits_NV.float()  # a no-op for fp32: the caller's buffer is reused
        best_N, guess_N = logits.max(dim=-1)
        target_N = logits.gather(1, targets_N[:, None])[:, 0]
        mean_N = logits.mean(dim=-1) if smoothing else None
        probabilities = logits.sub_(best_N[:, None]).exp_()
        sum_N = probabilities.sum(dim=-1)
        norm_N = best_N + sum_N.log()
        losses = norm_N - (1 - smoothing) * target_N
        if mean_N is not None:
            losses -= smoothing * mean_N
        gradient = probabilities.div_(sum_N[:, None])
        if smoothing:
            gradient -= smoothing / logits.shape[1]
        taken = torch.full_like(target_N, smoothing - 1)[:, None]
        gradient.scatter_add_(1, targets_N[:, None], taken)
        ctx.save_for_backward(gradient)
        ctx.logits_dtype = logits_NV.dtype
        num_correct = (guess_N == targets_N).sum()
        ctx.mark_non_differentiable(num_correct)
        return losses.sum(), num_correct

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = cast("tuple[Tensor]", ctx.saved_tensors)
        return gradient.mul_(gradients[0]).to(ctx.logits_dtype), None, None


def summed_cross_entropy(logits_NV: Tensor, targets_N: Tensor, smoothing: float = 0.0) -> LossSum:
    """Destroys `logits_NV` when gradients are on. Zero positions give a zero that still has a gradient."""
    if targets_N.numel() == 0:
        return LossSum(logits_NV.float().sum() * 0.0, 0)
    if torch.is_grad_enabled() and logits_NV.requires_grad:
        # apply() is untyped in torch's stubs.
        total, correct = cast(
            "tuple[Tensor, Tensor]",
            _SummedCrossEntropy.apply(logits_NV, targets_N, smoothing),  # pyright: ignore[reportUnknownMemberType]
        )
        return LossSum(total, int(correct))
    logits = logits_NV.float()
    total = torch.nn.functional.cross_entropy(logits, targets_N, reduction="sum", label_smoothing=smoothing)
    return LossSum(total, int((logits.argmax(dim=-1) == targets_N).sum()))
