"""Cross entropy right behind the output head: logits exist for a few positions at a time, and the way back is gone
on the way forth.

Only the gradient of the hidden states (and of the head's weight, when it is trained) is kept, so memory does not grow
with positions x vocabulary. Products run in the type of the weight, everything of the softmax in fp32.

Legend: N labelled positions, E hidden width, V vocabulary.
"""

from typing import Any, cast

import torch
from torch import Tensor

# Logits of one piece, in fp32: small enough to stay in a processor's cache, large enough for the product's speed.
_BYTES_AT_ONCE = 48 << 20


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_NE: Tensor,
        weight_VE: Tensor,
        product_VE: Tensor,
        targets_N: Tensor,
        smoothing: float,
    ) -> tuple[Tensor, Tensor]:
        train_weight = ctx.needs_input_grad[1]
        grad_hidden = torch.empty_like(hidden_NE)
        grad_weight = torch.zeros_like(weight_VE, dtype=torch.float32) if train_weight else None
        total = torch.zeros((), dtype=torch.float32, device=hidden_NE.device)
        correct = torch.zeros((), dtype=torch.long, device=hidden_NE.device)
        size = max(32, _BYTES_AT_ONCE // (4 * product_VE.shape[0]))
        for start in range(0, len(targets_N), size):
            piece = slice(start, start + size)
            losses, gradient, hits = _piece(hidden_NE[piece] @ product_VE.t(), targets_N[piece], smoothing)
            total += losses
            correct += hits
            gradient = gradient.to(product_VE.dtype)
            torch.mm(gradient, product_VE, out=grad_hidden[piece])
            if grad_weight is not None:
                grad_weight += torch.mm(gradient.t(), hidden_NE[piece])
        ctx.save_for_backward(grad_hidden, *(() if grad_weight is None else (grad_weight,)))
        ctx.mark_non_differentiable(correct)
        return total, correct

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        grad_hidden, *rest = cast("tuple[Tensor, ...]", ctx.saved_tensors)
        grad_weight = rest[0].mul_(gradients[0]) if rest else None
        return grad_hidden.mul_(gradients[0]), grad_weight, None, None, None


def _piece(logits_NV: Tensor, targets_N: Tensor, smoothing: float) -> tuple[Tensor, Tensor, Tensor]:
    """Summed loss, gradient of the logits in fp32, hits. The fp32 logits become their own gradient."""
    logits = logits_NV.float()
    best_N, guess_N = logits.max(dim=-1)
    target_N = logits.gather(1, targets_N[:, None])[:, 0]
    mean_N = logits.mean(dim=-1) if smoothing else None
    logits.sub_(best_N[:, None]).exp_()
    sum_N = logits.sum(dim=-1)
    losses_N = best_N + sum_N.log() - (1 - smoothing) * target_N
    if mean_N is not None:
        losses_N -= smoothing * mean_N
    logits.div_(sum_N[:, None])
    if smoothing:
        logits -= smoothing / logits.shape[1]
    logits.scatter_add_(1, targets_N[:, None], torch.full_like(target_N, smoothing - 1)[:, None])
    return losses_N.sum(), logits, (guess_N == targets_N).sum()


def head_loss(
    hidden_NE: Tensor, weight_VE: Tensor, product_VE: Tensor, targets_N: Tensor, smoothing: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Summed loss in fp32 and the number of right guesses. `product_VE` is `weight_VE` in the type of the products."""
    # apply() is untyped in torch's stubs.
    return cast(
        "tuple[Tensor, Tensor]",
        _HeadLoss.apply(hidden_NE, weight_VE, product_VE, targets_N, smoothing),  # pyright: ignore[reportUnknownMemberType]
    )
