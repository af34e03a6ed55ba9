"""The output head of a model whose layers stay its own: where logits are what the head gives and nothing
else, the loss can be made right behind it (head_loss.py), and they need never exist all at once."""

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor

from ..packing import segments
from ..spec import Family
from .projection import has_plain_head

_TOKENS = 3
# Large enough that a cap, a scale or a bias behind the head shows.
_SIZE = 50.0


def logits_are_the_heads(model: Any, family: Family) -> bool:
    """False where a model has no such head, or does more to logits than its head does: caps, scales, adds."""
    if family == "encoder" or model.get_output_embeddings() is None or not has_plain_head(model):
        return False
    return _comes_out_as_it_is(model, family)


@torch.no_grad()
def _comes_out_as_it_is(model: Any, family: Family) -> bool:
    """Whether the model's logits are what its head gives, tried with numbers in the head's place."""
    was_training = model.training
    model.eval()
    ids = torch.arange(_TOKENS, device=model.device)[None]
    asked: dict[str, Tensor] = {"input_ids": ids}
    if family == "seq2seq":
        asked["decoder_input_ids"] = ids
    else:
        asked["position_ids"] = ids
    try:
        with _instead(model) as given, segments([_TOKENS], [_TOKENS]):
            logits = cast("Tensor", model(**asked, use_cache=False).logits)
        return len(given) == 1 and torch.equal(logits.float(), given[0])
    except Exception:  # what this architecture asks for is not known: its own way is the right one
        return False
    finally:
        model.train(was_training)


@contextmanager
def _instead(model: Any) -> Generator[list[Tensor]]:
    """Within, the head gives these numbers, whatever it is asked: as many as it reads, as what it would have
    read comes out in its place."""
    head: Any = model.get_output_embeddings()
    given: list[Tensor] = []

    def give(hidden: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(len(given))
        drawn = torch.randn(hidden.shape, generator=generator) * _SIZE
        numbers = drawn.to(hidden.device, hidden.dtype)
        given.append(numbers.float())
        return numbers

    head.forward = give
    try:
        yield given
    finally:
        del head.forward
