"""Attention over rows laid end to end, each row seeing itself alone.

Linear layers, norms and the head run on all tokens of a micro-batch at once and never on padding; attention
runs row by row, so it is exact: no mask exists that could be wrong. Works on every back end that has SDPA.

Legend: B rows, H heads, K key heads, S tokens of all rows, L tokens of one row, D head width.
"""

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

IMPLEMENTATION = "fettle_segments"

_lengths: tuple[int, ...] | None = None


@contextmanager
def segments(lengths: Sequence[int]) -> Generator[None]:
    """Within this block the sequence axis of attention holds rows of these lengths. One thread only."""
    global _lengths
    before, _lengths = _lengths, tuple(lengths)
    try:
        yield
    finally:
        _lengths = before


def current_lengths() -> tuple[int, ...]:
    """Raises RuntimeError outside of `segments`."""
    if _lengths is None:
        raise RuntimeError("Packed attention needs the lengths of the rows.")
    return _lengths


def segment_attention(_: nn.Module, *tensors: Tensor, **options: Any) -> tuple[Tensor, None]:
    """Causal attention in the shape transformers asks of an attention function; returns 1 x S x H x D.
    `tensors`: query 1 x H x S x D, key and value 1 x K x S x D, and a mask that is not read."""
    query_1HSD, key_1KSD, value_1KSD = tensors[:3]
    if _lengths is None or sum(_lengths) != query_1HSD.shape[2]:
        raise RuntimeError(f"Packed attention needs row lengths that add up to {query_1HSD.shape[2]} tokens.")
    groups = query_1HSD.shape[1] // key_1KSD.shape[1]
    if groups > 1:
        key_1KSD = key_1KSD.repeat_interleave(groups, dim=1)
        value_1KSD = value_1KSD.repeat_interleave(groups, dim=1)
    window = cast("int | None", options.get("sliding_window"))
    dropout = float(options.get("dropout") or 0.0)
    parts: list[Tensor] = []
    start = 0
    # Rows of one length that lie side by side share a kernel call.
    for length, run in groupby(_lengths):
        count = sum(1 for _ in run)
        end = start + count * length
        query, key, value = (
            _rows(tensor[0, :, start:end], count) for tensor in (query_1HSD, key_1KSD, value_1KSD)
        )
        mask = None if window is None or window >= length else _window_mask(length, window, query.device)
        attended = functional.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=mask,
            dropout_p=dropout,
            is_causal=mask is None,
            scale=options.get("scaling"),
        )
        parts.append(
            attended.transpose(1, 2).reshape(1, count * length, *attended.shape[1:2], attended.shape[3])
        )
        start = end
    return (parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)), None


def _rows(tensor_HSD: Tensor, count: int) -> Tensor:
    """H x (B L) x D as B x H x L x D."""
    heads, tokens, width = tensor_HSD.shape
    return tensor_HSD.view(heads, count, tokens // count, width).transpose(0, 1)


def _window_mask(length: int, window: int, device: torch.device) -> Tensor:
    position = torch.arange(length, device=device)
    distance = position[:, None] - position[None, :]
    return (distance >= 0) & (distance < window)


def enable(model: Any) -> bool:
    """Switches the model to packed attention when it can do it exactly; False leaves it as it was."""
    from transformers import AttentionInterface

    # A softcap or attention sink would be ignored; such models keep their own attention.
    config = model.config.get_text_config()
    strange = getattr(config, "attn_logit_softcapping", None) or "sinks" in " ".join(
        name for name, _ in model.named_parameters()
    )
    if not getattr(model, "_supports_attention_backend", False) or strange:
        return False
    before = config._attn_implementation
    cast("Any", AttentionInterface).register(IMPLEMENTATION, segment_attention)
    if answers_alike(model, lambda: model.set_attn_implementation(IMPLEMENTATION)):
        return True
    model.set_attn_implementation(before)
    return False


# Of the hidden states, relative: what the order of sums makes of them, and what a wrong mask never stays below.
_ALIKE = {torch.float32: 1e-4, torch.bfloat16: 5e-2}


def answers_alike(model: Any, change: Callable[[], object], *, packed: bool = True) -> bool:
    """Whether two rows at once, after `change`, give what each gave alone before it. `packed`: laid end to end,
    otherwise padded on the right."""
    config = model.config.get_text_config()
    rows = [_probe_row(config, 11, 1), _probe_row(config, 6, 2)]
    was_training = model.training
    model.eval()
    try:
        expected = torch.cat([_hidden(model, [row]) for row in rows], dim=1).float()
        change()
        together = (_hidden if packed else _hidden_of_padded)(model, rows).float()
        return bool((together - expected).norm() <= _ALIKE[model.dtype] * expected.norm())
    except (TypeError, ValueError, RuntimeError, KeyError):
        return False  # this architecture passes other things to its attention: rows are padded instead
    finally:
        model.train(was_training)


def _probe_row(config: Any, length: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, int(config.vocab_size), (length,), generator=generator)


@torch.no_grad()
def _hidden(model: Any, rows: Sequence[Tensor]) -> Tensor:
    lengths = [len(row) for row in rows]
    positions = torch.cat([torch.arange(length) for length in lengths])[None].to(model.device)
    with segments(lengths):
        output = model.base_model(
            input_ids=torch.cat(list(rows))[None].to(model.device), position_ids=positions, use_cache=False
        )
    return cast("Tensor", output.last_hidden_state)


@torch.no_grad()
def _hidden_of_padded(model: Any, rows: Sequence[Tensor]) -> Tensor:
    lengths = [len(row) for row in rows]
    padded = torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True)
    mask = torch.arange(padded.shape[1])[None] < torch.tensor(lengths)[:, None]
    with segments(lengths):
        output = model.base_model(
            input_ids=padded.to(model.device), attention_mask=mask.long().to(model.device)
        )
    return cast("Tensor", output.last_hidden_state)[mask.to(model.device)][None]
