# Triton's decorators are untyped, and it is only there where a GPU's PyTorch is.
# pyright: reportMissingImports=false, reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false
# pyright: reportUnknownParameterType=false, reportUnknownArgumentType=false, reportMissingParameterType=false
# pyright: reportUntypedFunctionDecorator=false, reportOptionalMemberAccess=false, reportIndexIssue=false
# pyright: reportArgumentType=false, reportCallIssue=false, reportReturnType=false
"""What lies between a decoder's products on a GPU, in one kernel each (Triton): norms, the gate, positions,
and the loss. Numbers are read in the type they lie in, computed in fp32 and rounded once.

Legend: T tokens, E width, F width of the gate, H heads, D width of a head, N labelled positions,
V vocabulary.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

# Numbers that one program takes at once where rows do not matter.
_BLOCK = 2048
# Rows of heads that one program turns, of logits that it reads at once.
_HEADS_AT_ONCE = 16
_LOGITS_AT_ONCE = 8192
# Rows that one program sums a weight's gradient over.
_ROWS_SUMMED = 64


@triton.jit
def _rms_norm(x, added, weight, total, y, inverse, width, eps, HAS_ADDED: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    here = row * width + columns
    x_E = tl.load(x + here, mask=inside, other=0.0).to(tl.float32)
    if HAS_ADDED:
        x_E += tl.load(added + here, mask=inside, other=0.0).to(tl.float32)
        tl.store(total + here, x_E, mask=inside)
    inverse_1 = tl.rsqrt(tl.sum(x_E * x_E, axis=0) / width + eps)
    tl.store(inverse + row, inverse_1)
    w_E = tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)
    tl.store(y + here, x_E * inverse_1 * w_E, mask=inside)


def rms_norm(
    x_TE: Tensor, weight_E: Tensor, *, eps: float, added_TE: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """x + added in fp32, its norm in bf16, and T x 1 of 1 / rms."""
    x_TE = x_TE.contiguous()
    tokens, width = x_TE.shape
    added_TE = None if added_TE is None else added_TE.contiguous()
    total_TE = x_TE if added_TE is None else torch.empty_like(x_TE)
    y_TE = torch.empty_like(x_TE, dtype=torch.bfloat16)
    inverse_T1 = x_TE.new_empty(tokens, 1)
    block = triton.next_power_of_2(width)
    _rms_norm[(tokens,)](
        x_TE, x_TE if added_TE is None else added_TE, weight_E, total_TE, y_TE, inverse_T1, width, eps,
        HAS_ADDED=added_TE is not None, BLOCK=block, num_warps=_warps(block),
    )  # fmt: skip
    return total_TE, y_TE, inverse_T1


@triton.jit
def _rms_norm_backward(
    grad, x, inverse, weight, beside, out, narrowed, width, HAS_BESIDE: tl.constexpr, BLOCK: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    here = row * width + columns
    w_E = tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)
    scaled_E = tl.load(grad + here, mask=inside, other=0.0).to(tl.float32) * w_E
    x_E = tl.load(x + here, mask=inside, other=0.0).to(tl.float32)
    inverse_1 = tl.load(inverse + row)
    # dx = (g - x * mean(g x) / rms^2) / rms with g = dy w
    factor_1 = tl.sum(scaled_E * x_E, axis=0) / width * inverse_1 * inverse_1
    grad_E = (scaled_E - x_E * factor_1) * inverse_1
    if HAS_BESIDE:
        grad_E += tl.load(beside + here, mask=inside, other=0.0)
    tl.store(out + here, grad_E, mask=inside)
    tl.store(narrowed + here, grad_E, mask=inside)


def rms_norm_backward(
    grad_TE: Tensor, kept: tuple[Tensor, Tensor, Tensor], *, beside: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Gradient of x in fp32, and once more in bf16. `kept`: x, 1 / rms, weight."""
    x_TE, inverse_T1, weight_E = kept
    x_TE, grad_TE = x_TE.contiguous(), grad_TE.contiguous()
    beside = None if beside is None else beside.contiguous()
    out_TE, narrowed_TE = torch.empty_like(x_TE), torch.empty_like(x_TE, dtype=torch.bfloat16)
    tokens, width = x_TE.shape
    block = triton.next_power_of_2(width)
    _rms_norm_backward[(tokens,)](
        grad_TE, x_TE, inverse_T1, weight_E, x_TE if beside is None else beside, out_TE, narrowed_TE, width,
        HAS_BESIDE=beside is not None, BLOCK=block, num_warps=_warps(block),
    )  # fmt: skip
    return out_TE, narrowed_TE


@triton.jit
def _weight_gradient(grad, x, inverse, parts, tokens, width, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    first = tl.program_id(0).to(tl.int64) * ROWS
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < width
    sum_E = tl.zeros([BLOCK], dtype=tl.float32)
    for row in range(first, tl.minimum(first + ROWS, tokens)):
        here = row * width + columns
        grad_E = tl.load(grad + here, mask=inside, other=0.0).to(tl.float32)
        sum_E += grad_E * tl.load(x + here, mask=inside, other=0.0) * tl.load(inverse + row)
    tl.store(parts + tl.program_id(0).to(tl.int64) * width + columns, sum_E, mask=inside)


def rms_norm_weight_gradient(grad_TE: Tensor, x_TE: Tensor, inverse_T1: Tensor) -> Tensor:
    """E in fp32; always summed in the same order."""
    tokens, width = x_TE.shape
    groups = triton.cdiv(tokens, _ROWS_SUMMED)
    parts = x_TE.new_empty(groups, width)
    block = min(1024, triton.next_power_of_2(width))
    _weight_gradient[(groups, triton.cdiv(width, block))](
        grad_TE.contiguous(),
        x_TE.contiguous(),
        inverse_T1,
        parts,
        tokens,
        width,
        ROWS=_ROWS_SUMMED,
        BLOCK=block,
    )
    return parts.sum(dim=0)


@triton.jit
def _swiglu(gate, up, y, size, BLOCK: tl.constexpr):
    here = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = here < size
    g = tl.load(gate + here, mask=inside, other=0.0).to(tl.float32)
    u = tl.load(up + here, mask=inside, other=0.0).to(tl.float32)
    tl.store(y + here, g * tl.sigmoid(g) * u, mask=inside)


def swiglu(gate_TF: Tensor, up_TF: Tensor) -> Tensor:
    y_TF = torch.empty_like(gate_TF)
    _swiglu[_blocks(y_TF)](gate_TF, up_TF, y_TF, y_TF.numel(), BLOCK=_BLOCK, num_warps=8)
    return y_TF


@triton.jit
def _swiglu_backward(grad, gate, up, grad_gate, grad_up, size, BLOCK: tl.constexpr):
    here = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = here < size
    dy = tl.load(grad + here, mask=inside, other=0.0).to(tl.float32)
    g = tl.load(gate + here, mask=inside, other=0.0).to(tl.float32)
    u = tl.load(up + here, mask=inside, other=0.0).to(tl.float32)
    share = tl.sigmoid(g)
    # silu'(g) = s + g s (1 - s)
    tl.store(grad_gate + here, dy * u * share * (1 + g * (1 - share)), mask=inside)
    tl.store(grad_up + here, dy * g * share, mask=inside)


def swiglu_backward(grad_TF: Tensor, gate_TF: Tensor, up_TF: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of gate and up."""
    grad_gate, grad_up = torch.empty_like(gate_TF), torch.empty_like(up_TF)
    tensors = (grad_TF.contiguous(), gate_TF, up_TF, grad_gate, grad_up)
    _swiglu_backward[_blocks(grad_gate)](*tensors, grad_gate.numel(), BLOCK=_BLOCK, num_warps=8)
    return grad_gate, grad_up


def add(x_TE: Tensor, added_TE: Tensor) -> Tensor:
    """In fp32. PyTorch reads two types in one kernel already."""
    return x_TE + added_TE


@triton.jit
def _turn(
    x, weight, cosines, sines, out, rows, heads, token_step, eps,
    NORMED: tl.constexpr, ROWS: tl.constexpr, HALF: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, BLOCK)[None, :]
    inside = (row < rows) & (column < HALF)
    token = row // heads
    here = token * token_step + row % heads * (2 * HALF) + column
    first = tl.load(x + here, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(x + here + HALF, mask=inside, other=0.0).to(tl.float32)
    if NORMED:
        squares = tl.sum(first * first, axis=1) + tl.sum(second * second, axis=1)
        inverse = tl.rsqrt(squares / (2 * HALF) + eps)[:, None]
        first *= inverse * tl.load(weight + column, mask=column < HALF, other=0.0).to(tl.float32)
        second *= inverse * tl.load(weight + HALF + column, mask=column < HALF, other=0.0).to(tl.float32)
    table = token * (2 * HALF) + column
    turned = first * tl.load(cosines + table, mask=inside, other=0.0).to(tl.float32)
    turned += second * tl.load(sines + table, mask=inside, other=0.0).to(tl.float32)
    there = row * (2 * HALF) + column
    tl.store(out + there, turned, mask=inside)
    turned = second * tl.load(cosines + table + HALF, mask=inside, other=0.0).to(tl.float32)
    turned += first * tl.load(sines + table + HALF, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + there + HALF, turned, mask=inside)


def turn(
    x_TC: Tensor,
    tables: tuple[Tensor, Tensor],
    *,
    width: int,
    weight_D: Tensor | None = None,
    eps: float = 0.0,
) -> Tensor:
    """T x H x D: each head of the columns C = H D, normed where there is a weight, then turned. `tables`:
    cosines and sines, T x D; the sines of the first half have their sign changed."""
    tokens, columns = x_TC.shape
    heads = columns // width
    out = x_TC.new_empty(tokens, heads, width)
    _turn[(triton.cdiv(tokens * heads, _HEADS_AT_ONCE),)](
        x_TC, tables[0] if weight_D is None else weight_D, *tables, out,
        tokens * heads, heads, x_TC.stride(0), eps,
        NORMED=weight_D is not None, ROWS=_HEADS_AT_ONCE, HALF=width // 2,
        BLOCK=triton.next_power_of_2(width // 2),
    )  # fmt: skip
    return out


@triton.jit
def _turn_back(
    grad, x, weight, cosines, sines, out, parts, rows, heads, out_step, x_step, eps,
    NORMED: tl.constexpr, SUMS: tl.constexpr, ROWS: tl.constexpr, HALF: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, BLOCK)[None, :]
    inside = (row < rows) & (column < HALF)
    token = row // heads
    there = row * (2 * HALF) + column
    first_grad = tl.load(grad + there, mask=inside, other=0.0).to(tl.float32)
    second_grad = tl.load(grad + there + HALF, mask=inside, other=0.0).to(tl.float32)
    table = token * (2 * HALF) + column
    dy = first_grad * tl.load(cosines + table, mask=inside, other=0.0).to(tl.float32)
    dy += second_grad * tl.load(sines + table + HALF, mask=inside, other=0.0).to(tl.float32)
    dz = second_grad * tl.load(cosines + table + HALF, mask=inside, other=0.0).to(tl.float32)
    dz += first_grad * tl.load(sines + table, mask=inside, other=0.0).to(tl.float32)
    head = row % heads * (2 * HALF) + column
    if NORMED:
        first = tl.load(x + token * x_step + head, mask=inside, other=0.0).to(tl.float32)
        second = tl.load(x + token * x_step + head + HALF, mask=inside, other=0.0).to(tl.float32)
        squares = tl.sum(first * first, axis=1) + tl.sum(second * second, axis=1)
        inverse = tl.rsqrt(squares / (2 * HALF) + eps)[:, None]
        if SUMS:
            place = parts + tl.program_id(0).to(tl.int64) * (2 * HALF) + tl.arange(0, BLOCK)
            narrow = tl.arange(0, BLOCK) < HALF
            tl.store(place, tl.sum(dy * first * inverse, axis=0), mask=narrow)
            tl.store(place + HALF, tl.sum(dz * second * inverse, axis=0), mask=narrow)
        dy *= tl.load(weight + column, mask=column < HALF, other=0.0).to(tl.float32)
        dz *= tl.load(weight + HALF + column, mask=column < HALF, other=0.0).to(tl.float32)
        dot = tl.sum(dy * first, axis=1) + tl.sum(dz * second, axis=1)
        factor = (dot / (2 * HALF))[:, None] * inverse * inverse
        dy = (dy - first * factor) * inverse
        dz = (dz - second * factor) * inverse
    tl.store(out + token * out_step + head, dy, mask=inside)
    tl.store(out + token * out_step + head + HALF, dz, mask=inside)


def turn_back(
    grad_THD: Tensor,
    tables: tuple[Tensor, Tensor],
    out_TC: Tensor,
    *,
    normed: tuple[Tensor, Tensor, float] | None = None,
    sums: bool = False,
) -> Tensor | None:
    """Writes the gradient of `turn`'s columns into `out_TC`. `normed`: those columns, the weight and eps.
    With `sums`: D, the weight's gradient in fp32, always summed in the same order."""
    tokens, heads, width = grad_THD.shape
    x_TC, weight_D, eps = normed or (out_TC, tables[0], 0.0)
    groups = triton.cdiv(tokens * heads, _HEADS_AT_ONCE)
    parts = torch.empty(groups if sums else 0, width, dtype=torch.float32, device=grad_THD.device)
    _turn_back[(groups,)](
        grad_THD.contiguous(), x_TC, weight_D, *tables, out_TC, parts if sums else tables[0],
        tokens * heads, heads, out_TC.stride(0), x_TC.stride(0), eps,
        NORMED=normed is not None, SUMS=sums, ROWS=_HEADS_AT_ONCE, HALF=width // 2,
        BLOCK=triton.next_power_of_2(width // 2),
    )  # fmt: skip
    return parts.sum(dim=0) if sums else None


@triton.jit
def _cross_entropy(logits, targets, losses, hits, width, smoothing, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    logits += row * width
    target = tl.load(targets + row)
    best = tl.full([], float("-inf"), tl.float32)
    place = tl.full([], 0, tl.int64)
    sum_1 = tl.zeros([], tl.float32)
    all_1 = tl.zeros([], tl.float32)
    for start in range(0, width, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        part = tl.load(logits + columns, mask=columns < width, other=float("-inf")).to(tl.float32)
        most = tl.max(part, axis=0)
        if most > best:
            place = tl.min(tl.where(part == most, columns, width), axis=0).to(tl.int64)
            sum_1 *= tl.exp(best - most)
            best = most
        sum_1 += tl.sum(tl.exp(part - best), axis=0)
        all_1 += tl.sum(tl.where(columns < width, part, 0.0), axis=0)
    log_sum = best + tl.log(sum_1)
    asked = tl.load(logits + target).to(tl.float32)
    tl.store(losses + row, log_sum - (1 - smoothing) * asked - smoothing * all_1 / width)
    tl.store(hits + row, (place == target).to(tl.int32))
    # What was read must be read before it is written over.
    tl.debug_barrier()
    for start in range(0, width, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        part = tl.load(logits + columns, mask=columns < width, other=float("-inf")).to(tl.float32)
        gradient = tl.exp(part - log_sum) - smoothing / width
        gradient -= tl.where(columns == target, 1 - smoothing, 0.0)
        tl.store(logits + columns, gradient, mask=columns < width)


def cross_entropy_(logits_NV: Tensor, targets_N: Tensor, smoothing: float) -> tuple[Tensor, Tensor]:
    """Makes logits into the gradient of their summed loss, in place; that sum in fp32, and the number of
    right guesses. What is no number stays none."""
    losses = logits_NV.new_empty(len(targets_N), dtype=torch.float32)
    hits = logits_NV.new_empty(len(targets_N), dtype=torch.int32)
    _cross_entropy[(len(targets_N),)](
        logits_NV, targets_N, losses, hits, logits_NV.shape[1], smoothing, BLOCK=_LOGITS_AT_ONCE, num_warps=16
    )
    return losses.sum(), hits.sum()


def try_all(device: torch.device) -> None:
    """Compiles and runs each kernel once, with numbers that nobody reads. Raises what Triton raises."""
    x_TE, weight_E = torch.ones(2, 32, device=device), torch.ones(32, device=device)
    short_TE = x_TE.bfloat16()
    total_TE, y_TE, inverse_T1 = rms_norm(x_TE, weight_E, eps=1e-6, added_TE=short_TE)
    rms_norm_backward(y_TE, (total_TE, inverse_T1, weight_E), beside=total_TE)
    rms_norm_weight_gradient(y_TE, total_TE, inverse_T1)
    swiglu_backward(swiglu(short_TE, short_TE), short_TE, short_TE)
    tables = (torch.ones_like(short_TE[:, :16]), torch.zeros_like(short_TE[:, :16]))
    turned = turn(short_TE, tables, width=16, weight_D=weight_E[:16], eps=1e-6)
    turn_back(turned, tables, torch.empty_like(short_TE), normed=(short_TE, weight_E[:16], 1e-6), sums=True)
    cross_entropy_(short_TE.clone(), torch.zeros(2, dtype=torch.long, device=device), 0.0)


def _warps(block: int) -> int:
    return min(16, max(1, block // 256))


def _blocks(tensor: Tensor) -> tuple[int]:
    return (triton.cdiv(tensor.numel(), _BLOCK),)
