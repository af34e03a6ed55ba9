"""Cross entropy right behind the output head: logits exist for a few positions at a time, and the way back
is gone on the way forth.

Only the gradient of the hidden states (and of the head's weight, when it is trained) is kept, so memory
does not grow with positions x vocabulary. Products run in the type of the weight, everything of the softmax
in fp32.

Legend: N labelled positions, E hidden width, V vocabulary.
"""

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

# Logits of one piece, in fp32. Fewer rows at a time make the products slower, more cost memory for little.
_BYTES_AT_ONCE = 50 << 20


class Head(NamedTuple):
    """The head's weight, and the same in the type of the products."""

    weight_VE: Tensor
    product_VE: Tensor


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
        pieces = _pieces(len(targets_N), product_VE.shape[0])
        size = pieces[0].stop if pieces else 0
        short = torch.empty(size, product_VE.shape[0], dtype=product_VE.dtype, device=product_VE.device)
        exact = short if short.dtype == torch.float32 else torch.empty_like(short, dtype=torch.float32)
        for piece in pieces:
            logits = torch.mm(hidden_NE[piece], product_VE.t(), out=short[: piece.stop - piece.start])
            wide = exact[: len(logits)].copy_(logits)
            losses, hits = _to_gradient(wide, targets_N[piece], smoothing)
            total += losses
            correct += hits
            gradient = logits.copy_(wide)
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


def _pieces(num_targets: int, vocab_size: int) -> list[slice]:
    """Of equal size but the last."""
    most = max(32, _BYTES_AT_ONCE // (4 * vocab_size))
    size = -(-num_targets // max(1, -(-num_targets // most)))
    return [slice(start, min(num_targets, start + size)) for start in range(0, num_targets, max(1, size))]


def _to_gradient(logits_NV: Tensor, targets_N: Tensor, smoothing: float) -> tuple[Tensor, Tensor]:
    """Makes fp32 logits into their own gradient; summed loss and hits."""
    best_N, guess_N = logits_NV.max(dim=-1)
    target_N = logits_NV.gather(1, targets_N[:, None])[:, 0]
    mean_N = logits_NV.mean(dim=-1) if smoothing else None
    logits_NV.sub_(best_N[:, None]).exp_()
    sum_N = logits_NV.sum(dim=-1)
    losses_N = best_N + sum_N.log() - (1 - smoothing) * target_N
    if mean_N is not None:
        losses_N -= smoothing * mean_N
    logits_NV.div_(sum_N[:, None])
    if smoothing:
        logits_NV -= smoothing / logits_NV.shape[1]
    logits_NV.scatter_add_(1, targets_N[:, None], torch.full_like(target_N, smoothing - 1)[:, None])
    return losses_N.sum(), (guess_N == targets_N).sum()


def head_loss(
    hidden_NE: Tensor, targets_N: Tensor, head: Head, *, smoothing: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Summed loss in fp32 and the number of right guesses."""
    # apply() is untyped in torch's stubs.
    apply = cast("Any", _HeadLoss).apply
    return cast(
        "tuple[Tensor, Tensor]", apply(hidden_NE.to(head.product_VE.dtype), *head, targets_N, smoothing)
    )
