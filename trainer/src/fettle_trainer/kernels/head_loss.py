"""Cross entropy right behind the output head: logits exist for a few positions at a time, and the way back
is gone on the way forth.

Only the gradient of the hidden states (and of the head's weight, when it is trained) is kept, so memory
does not grow with positions x vocabulary. Products run in the type of the weight, everything of the softmax
in fp32.

Legend: N labelled positions, E hidden width, V vocabulary.
"""

from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor

from . import passes
from .projection import Projection

# Logits of one piece, in fp32, but at least so many rows. Fewer at a time make the products slower, more cost
# memory for little.
_BYTES_AT_ONCE = {"cpu": 50 << 20, "cuda": 1 << 30}
_ROWS_AT_ONCE = 256
# Gradients of logits that one product makes into the weight's, in the type of the products.
_BYTES_KEPT = {"cpu": 200 << 20, "cuda": 2 << 30}


def rooms(weight_VE: Tensor) -> tuple[int, int]:
    """Bytes of logits in fp32 at once, and of their gradients kept in the type of the products: at least as
    many as the weight has in fp32, whose gradient there must be room for anyway."""
    kind = "cpu" if weight_VE.device.type == "cpu" else "cuda"
    at_once = max(_BYTES_AT_ONCE[kind], 4 * _ROWS_AT_ONCE * weight_VE.shape[0])
    return at_once, max(_BYTES_KEPT[kind], 4 * weight_VE.numel())


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_NE: Tensor, targets_N: Tensor, head: Projection, smoothing: float) -> Any:
        weight_VE, _ = head.weight_and_bias()
        gpu = passes.on_gpu(weight_VE.dtype, weight_VE.device)
        grad_hidden = torch.empty_like(hidden_NE)
        grad_weight: Tensor | None = None
        total = torch.zeros((), dtype=torch.float32, device=hidden_NE.device)
        correct = torch.zeros((), dtype=torch.long, device=hidden_NE.device)
        for group, pieces in _groups(len(targets_N), weight_VE, keeps=head.trains_weight):
            short = weight_VE.new_empty(group.stop - group.start, len(weight_VE))
            exact = short if short.dtype == torch.float32 else None
            for piece in pieces:
                here = slice(piece.start - group.start, piece.stop - group.start)
                logits = torch.mm(hidden_NE[piece], weight_VE.t(), out=short[here])
                if gpu is not None:
                    losses, hits = gpu.cross_entropy_(logits, targets_N[piece], smoothing)
                else:
                    if exact is None:
                        exact = torch.empty_like(logits, dtype=torch.float32)
                    wide = logits if exact is short else exact[: len(logits)].copy_(logits)
                    losses, hits = _to_gradient(wide, targets_N[piece], smoothing)
                    if wide is not logits:
                        logits.copy_(wide)
                total += losses
                correct += hits
                torch.mm(logits, weight_VE, out=grad_hidden[piece])
            if head.trains_weight:
                made = torch.mm(short.t(), hidden_NE[group])
                grad_weight = made if grad_weight is None else grad_weight.float().add_(made)
        if grad_weight is None and head.trains_weight:
            grad_weight = torch.zeros_like(weight_VE)  # nothing to learn here, yet the step's gradients begin
        ctx.head = head
        ctx.save_for_backward(grad_hidden, *(() if grad_weight is None else (grad_weight,)))
        ctx.mark_non_differentiable(correct)
        return total, correct

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        grad_hidden, *rest = cast("tuple[Tensor, ...]", ctx.saved_tensors)
        if rest:
            cast("Projection", ctx.head).take_gradient(rest[0], gradients[0])
        return grad_hidden.mul_(gradients[0]), None, None, None


def _groups(num_targets: int, weight_VE: Tensor, *, keeps: bool) -> Iterator[tuple[slice, list[slice]]]:
    """Groups of positions whose gradients are kept together, each cut into pieces."""
    pieces = _pieces(num_targets, weight_VE)
    size = 1
    if keeps and pieces:
        bytes_of_piece = pieces[0].stop * weight_VE.shape[0] * weight_VE.element_size()
        size = max(1, rooms(weight_VE)[1] // bytes_of_piece)
    for first in range(0, len(pieces), size):
        some = pieces[first : first + size]
        yield slice(some[0].start, some[-1].stop), some


def _pieces(num_targets: int, weight_VE: Tensor) -> list[slice]:
    """Of equal size but the last."""
    most = rooms(weight_VE)[0] // (4 * weight_VE.shape[0])
    size = -(-num_targets // max(1, -(-num_targets // most)))
    return [slice(start, min(num_targets, start + size)) for start in range(0, num_targets, max(1, size))]


def _to_gradient(logits_NV: Tensor, targets_N: Tensor, smoothing: float) -> tuple[Tensor, Tensor]:
    """Makes fp32 logits into their own gradient; summed loss and hits."""
    best_N, guess_N = logits_NV.max(dim=-1)
    target_N = logits_NV.gather(1, targets_N[:, None])[:, 0]
    mean_N = logits_NV.mean(dim=-1) if smoothing else None
    torch.softmax(logits_NV, dim=-1, out=logits_NV)
    # The log of the sum by the largest probability: a target's may be too small to have one.
    losses_N = best_N - logits_NV.amax(dim=-1).log() - (1 - smoothing) * target_N
    if mean_N is not None:
        losses_N -= smoothing * mean_N
        logits_NV -= smoothing / logits_NV.shape[1]
    logits_NV.scatter_add_(1, targets_N[:, None], torch.full_like(target_N, smoothing - 1)[:, None])
    return losses_N.sum(), (guess_N == targets_N).sum()


def head_loss(
    hidden_NE: Tensor, targets_N: Tensor, head: Projection, *, smoothing: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Summed loss in fp32 and the number of right guesses."""
    weight_VE, _ = head.weight_and_bias()
    # apply() is untyped in torch's stubs.
    apply = cast("Any", _HeadLoss).apply
    return cast("tuple[Tensor, Tensor]", apply(hidden_NE.to(weight_VE.dtype), targets_N, head, smoothing))
