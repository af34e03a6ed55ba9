"""What a frozen base makes of each row, computed once: from then on only the head runs.

The base of a run that trains its head alone never changes and has no dropout, so each row's answer of the
base is the same in every epoch. Whether the head needs no more than that answer is tried, not looked up.

Legend: N rows, B rows of a batch, E width.
"""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from .collate import Batch
from .packing import answers_at

MOST_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class Features:
    """`hidden_NE`: fp32, the base's output at each row's first token (last token in a packed decoder).
    `targets_N`: one a row. `reference`: as in `TokenRows`."""

    hidden_NE: Tensor
    targets_N: Tensor
    num_tokens: list[int]
    reference: Tensor | None = None

    def batch(self, chosen: list[int]) -> Batch:
        index = torch.tensor(chosen)
        return Batch(
            input_ids=self.hidden_NE.new_zeros(0, dtype=torch.long),
            gather_N=index,
            targets_N=self.targets_N[index],
            num_tokens=sum(self.num_tokens[row] for row in chosen),
            rows=tuple(chosen),
            features=self.hidden_NE[index],
            reference=None if self.reference is None else self.reference[index],
        )


def hidden_of(model: Any, inputs: dict[str, Any], batch: Batch) -> Tensor:
    """B x E, what `head_logits` goes on from."""
    hidden = cast("Tensor", model.base_model(**inputs).last_hidden_state)
    return hidden[:, 0] if batch.lengths is None else answers_at(hidden, batch.gather_N)


def head_logits(model: Any, hidden_BE: Tensor, *, packed: bool) -> Tensor:
    """The head's answer to `hidden_of`."""
    if packed:
        return cast("Tensor", model.score(hidden_BE))
    with _instead_of_base(model, hidden_BE):
        ids = torch.zeros(len(hidden_BE), 1, dtype=torch.long)
        return cast("Tensor", model(input_ids=ids).logits)


@contextmanager
def _instead_of_base(model: Any, hidden_BE: Tensor) -> Generator[None]:
    from transformers.modeling_outputs import BaseModelOutputWithPooling

    pooler = cast("Callable[[Tensor], Tensor] | None", getattr(model.base_model, "pooler", None))
    hidden = hidden_BE[:, None]

    def known(*_: Any, **__: Any) -> Any:
        pooled = None if pooler is None else pooler(hidden)
        return cast("Any", BaseModelOutputWithPooling)(last_hidden_state=hidden, pooler_output=pooled)

    model.base_model.forward = known
    try:
        yield
    finally:
        del model.base_model.forward


def why_not(model: Any, head_modules: tuple[str, ...], num_rows: int) -> str:
    """Empty when features may be kept."""
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    if not trained or not all(
        name.startswith(tuple(f"{head}." for head in head_modules)) for name in trained
    ):
        return "more than the head is trained"
    size = num_rows * int(model.config.get_text_config().hidden_size) * 4
    if size > MOST_BYTES:
        return f"the base's answers to {num_rows:,} rows would take {size / 1e9:.1f} GB"
    return ""
