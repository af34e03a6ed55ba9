"""Plain text: a decoder goes on learning language from documents, every token of them.

A document is begun by the tokenizer's BOS (without one by EOS) and ended by EOS. One longer than `max_length`
is cut into windows; a window begins with the last token of the one before, so that each token is learnt once.
Windows are put together, in the file's order, into rows of at most `max_length` tokens. None of them sees
another. `aux`: the tokens of each window of a row.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from ..messages import PromptError
from ..tensor_files import integers
from .chat import Perplexity
from .objective import Feed, Objective, RowReader, Scores, TokenRow, text_of


class Pretraining(Objective):
    auto_class = "AutoModelForCausalLM"
    peft_task = "CAUSAL_LM"
    reads = "vocabulary"
    has_head = False

    def encode(self, row: Mapping[str, Any], reader: RowReader) -> list[TokenRow]:
        text = text_of(row, "text")
        if not text.strip():
            raise PromptError("no_text", "The text is empty: there is nothing to learn.")
        ids = reader.prompts.document(text)
        if len(ids) < 2:
            raise PromptError(
                "no_text", "The text is one token, and nothing comes before it to learn it from."
            )
        step = reader.max_length - 1
        windows = [ids[start : start + reader.max_length] for start in range(0, len(ids) - 1, step)]
        return [TokenRow(window, [len(window)], 0) for window in windows]

    def arranged(
        self, rows: Iterable[tuple[TokenRow, int]], max_length: int
    ) -> Iterator[tuple[TokenRow, int]]:
        """Neighbours put together while they fit; a row keeps the line of its first window."""
        ids, sizes, first = list[int](), list[int](), 0
        for row, line in rows:
            if sizes and len(ids) + len(row.ids) > max_length:
                yield TokenRow(ids, sizes, 0), first
                ids, sizes = [], []
            if not sizes:
                first = line
            ids, sizes = ids + row.ids, sizes + row.aux
        if sizes:
            yield TokenRow(ids, sizes, 0), first

    def feeds(self, ids: Tensor, aux: Tensor, label: Tensor) -> list[Feed]:
        windows = torch.split(ids, integers(aux))
        return [Feed(one[:-1], torch.arange(len(one) - 1), one[1:]) for one in windows]

    def num_targets(self, num_rows: int, aux: Tensor) -> int:
        return int((aux - 1).sum())

    def scores(self) -> Scores:
        return Perplexity()
