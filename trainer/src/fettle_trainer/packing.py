"""Attention over rows laid end to end, each row seeing itself alone.

Linear layers, norms and the head run on all tokens of a micro-batch at once and never on padding; attention
runs row by row, so it is exact: no mask exists that could be wrong. Works on every back end that has SDPA.

Legend: B rows, H heads, K key heads, S tokens of all rows, L tokens of one row, D head width.
"""

from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import groupby
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from .compared import ANEW, Compared, told

IMPLEMENTATION = "fettle_segments"

# Tokens of a micro-batch come in multiples of this where layers are our own.
TOKENS_TOGETHER = 32

_lengths: tuple[int, ...] | None = None
_target_lengths: tuple[int, ...] | None = None
_reads: Tensor | None = None


@contextmanager
def segments(
    lengths: Sequence[int], target_lengths: Sequence[int] = (), *, reads: Tensor | None = None
) -> Generator[None]:
    """Within this block the sequence axis of attention holds rows of these lengths, that of an
    encoder-decoder's decoder the targets'. `reads`: see `current_reads`. One thread only."""
    global _lengths, _target_lengths, _reads
    before = _lengths, _target_lengths, _reads
    _lengths, _target_lengths, _reads = tuple(lengths), tuple(target_lengths), reads
    try:
        yield
    finally:
        _lengths, _target_lengths, _reads = before


def same_segments() -> Callable[[], AbstractContextManager[None]]:
    """The block that this is called in, for whoever comes back to its rows after it has ended."""
    lengths, target_lengths, reads = _lengths, _target_lengths, _reads
    if lengths is None:
        return nullcontext
    return lambda: segments(lengths, target_lengths or (), reads=reads)


def filler(tokens: int) -> int:
    """Tokens to add, as a row of their own that nobody asks: each new size of a product costs a millisecond
    of preparation, and memory for good."""
    return -tokens % TOKENS_TOGETHER


def current_lengths() -> tuple[int, ...]:
    """Raises RuntimeError outside of `segments`."""
    if _lengths is None:
        raise RuntimeError("Packed attention needs the lengths of the rows.")
    return _lengths


def current_target_lengths() -> tuple[int, ...]:
    """Raises RuntimeError outside of `segments` with targets."""
    if not _target_lengths:
        raise RuntimeError("The decoder needs the lengths of the targets.")
    return _target_lengths


def current_reads() -> Tensor | None:
    """The tokens, of all rows laid end to end, whose answers anybody reads; None is all. The last of our own
    layers leaves the others out."""
    return _reads


def answers_at(hidden: Tensor, places_N: Tensor) -> Tensor:
    """N x E of B x L x E. Of the answers that are read alone, the first N are these."""
    if _reads is not None:
        return hidden[0, : len(places_N)]
    return hidden.flatten(0, 1).index_select(0, places_N)


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


def switch(model: Any) -> None:
    """Packed attention from now on; transformers makes no mask for it."""
    from transformers import AttentionInterface

    cast("Any", AttentionInterface).register(IMPLEMENTATION, segment_attention)
    model.set_attn_implementation(IMPLEMENTATION)


def enable(model: Any, dtype: torch.dtype, compared: Compared = ANEW) -> bool:
    """Switches the model to packed attention when it can do it exactly; False leaves it as it was.
    `dtype`: of the products."""
    # A softcap or attention sink would be ignored; such models keep their own attention.
    config = model.config.get_text_config()
    strange = getattr(config, "attn_logit_softcapping", None) or "sinks" in " ".join(
        name for name, _ in model.named_parameters()
    )
    if not getattr(model, "_supports_attention_backend", False) or strange:
        return False
    before = config._attn_implementation

    def change() -> None:
        switch(model)

    def compare() -> str:
        return how_unlike(model, change, dtype=dtype)

    if not compared.ask(model, f"packed, {dtype}", change=change, compare=compare):
        return True
    model.set_attn_implementation(before)
    return False


# Of the hidden states, relative: what the order of sums makes of them, and what a wrong mask never stays
# below.
_ALIKE = {torch.float32: 1e-4, torch.bfloat16: 5e-2}


Answers = Callable[[Any, Sequence[Tensor]], Tensor]


# Of the gradient of one weight: so many times as much, as sums are longer there; and what is small beside all
# gradients together is asked less exactly.
_GRADIENTS, _OF_ALL = 4, 0.01


def how_unlike(
    model: Any,
    change: Callable[[], object],
    *,
    dtype: torch.dtype,
    answers: Answers | None = None,
    both_ways: bool = False,
) -> str:
    """Empty when two rows at once, after `change`, give what each gave alone before it; otherwise what is
    different. `answers`: how rows go into the model, laid end to end unless said otherwise. `dtype`: of the
    products. `both_ways`: the gradients of all that is trained are compared too."""
    ask = answers or packed_answers
    config = model.config.get_text_config()
    rows = [_probe_row(config, 11, 1), _probe_row(config, 6, 2)]
    was_training = model.training
    model.eval()
    short = torch.autocast(model.device.type, dtype=dtype, enabled=dtype != torch.float32)
    try:
        with torch.set_grad_enabled(both_ways), short:
            expected = torch.cat([ask(model, [row]) for row in rows]).float()
            before = _gradients(model, expected)
            change()
            together = ask(model, rows).float()
            after = _gradients(model, together)
    except Exception as error:
        # This architecture passes other things to its layers; or a compiler or a driver does not go along.
        return told(error)
    finally:
        model.train(was_training)
    distance, size = _size(together - expected), _size(expected)
    if not distance <= _ALIKE[dtype] * size:
        return f"answers differ by {distance / size:.2%}"
    return _unlike_gradients(before, after, _GRADIENTS * _ALIKE[dtype])


def _size(tensor: Tensor) -> float:
    return float(tensor.detach().float().square().sum().sqrt())


def _gradients(model: Any, answers: Tensor) -> dict[str, Tensor]:
    """Of a fixed sum of the answers, by all that is trained; empty where nothing of it leads there."""
    if not answers.requires_grad:
        return {}
    named = cast("list[tuple[str, nn.Parameter]]", list(model.named_parameters()))
    trained = {name: parameter for name, parameter in named if parameter.requires_grad}
    factors = torch.randn(answers.shape, generator=torch.Generator().manual_seed(3)).to(answers.device)
    total = (answers * factors).sum()
    found = torch.autograd.grad(total, list(trained.values()), allow_unused=True, materialize_grads=True)
    return dict(zip(trained, found, strict=True))


def _unlike_gradients(before: dict[str, Tensor], after: dict[str, Tensor], alike: float) -> str:
    if before.keys() != after.keys():
        return "gradients are of other weights"
    of_all = sum(_size(one) ** 2 for one in before.values()) ** 0.5
    for name, expected in before.items():
        distance, size = _size(after[name] - expected), _size(expected) + _OF_ALL * of_all
        if not distance <= alike * size:
            return f"gradients of {name} differ by {distance / size:.2%}"
    return ""


def _probe_row(config: Any, length: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, int(config.vocab_size), (length,), generator=generator)


def packed_answers(model: Any, rows: Sequence[Tensor]) -> Tensor:
    """Hidden states of rows laid end to end, one below the other."""
    lengths = [len(row) for row in rows]
    positions = torch.cat([torch.arange(length) for length in lengths])[None].to(model.device)
    with segments(lengths):
        output = model.base_model(
            input_ids=torch.cat(list(rows))[None].to(model.device), position_ids=positions, use_cache=False
        )
    return cast("Tensor", output.last_hidden_state)[0]


def padded_answers(model: Any, rows: Sequence[Tensor]) -> Tensor:
    """Hidden states of rows filled up on the right, without those of the padding."""
    ids, mask = _padded(rows)
    with segments([len(row) for row in rows]):
        output = model.base_model(input_ids=ids.to(model.device), attention_mask=mask.to(model.device))
    return cast("Tensor", output.last_hidden_state)[mask.bool().to(model.device)]


def pair_answers(model: Any, rows: Sequence[Tensor]) -> Tensor:
    """Logits of an encoder-decoder that reads rows and writes them backwards, without the last token."""
    ids, mask = _padded(rows)
    targets, target_mask = _padded([row.flip(0)[:-1] for row in rows])
    with segments([len(row) for row in rows], [len(row) - 1 for row in rows]):
        output = model(
            input_ids=ids.to(model.device),
            attention_mask=mask.to(model.device),
            decoder_input_ids=targets.to(model.device),
            use_cache=False,
        )
    return cast("Tensor", output.logits)[target_mask.bool().to(model.device)]


def _padded(rows: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    lengths = torch.tensor([len(row) for row in rows])
    padded = torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True)
    return padded, (torch.arange(padded.shape[1])[None] < lengths[:, None]).long()
