"""A text in, a text out, by an encoder-decoder. `aux`: the target's ids."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..messages import PromptError
from .chat import Perplexity
from .objective import Feed, Objective, RowReader, Scores, TokenRow, text_of

# Marks rows whose `aux` are tokens too.
SEQ2SEQ_LABEL = -1


class Seq2Seq(Objective):
    auto_class = "AutoModelForSeq2SeqLM"
    peft_task = "SEQ_2_SEQ_LM"
    reads = "vocabulary"
    has_head = False

    def encode(self, row: Mapping[str, Any], reader: RowReader) -> list[TokenRow]:
        if not text_of(row, "completion").strip():
            raise PromptError("no_answer", "The completion is empty: write the text the model shall answer.")
        source = reader.prompts.classification_text(text_of(row, "prompt"), None, reader.max_length)
        target = reader.prompts.seq2seq_target(row["completion"])
        if len(target) > reader.max_length:
            raise PromptError(
                "too_long",
                f"The completion has {len(target)} tokens, more than max_length {reader.max_length}: it "
                "would be learnt without its end. Shorten the row or raise max_length.",
            )
        return [TokenRow(source.ids, target, SEQ2SEQ_LABEL, truncated=source.truncated)]

    def feeds(self, ids: Tensor, aux: Tensor, label: Tensor) -> list[Feed]:
        """The source alone: the target goes to the decoder, one step late, and is collated there."""
        return [Feed(ids, ids.new_zeros(0), aux)]

    def num_targets(self, num_rows: int, aux: Tensor) -> int:
        return aux.numel()

    def scores(self) -> Scores:
        return Perplexity()
