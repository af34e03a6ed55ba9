"""Names in a text: spans of characters with a label, learnt word by word as B(egin), I(nside) and O(utside).

The first token of a word carries the word's tag, the others none. What a word is, the tokenizer says; a span
is made of whole words, so it may reach a little further than was marked. `aux`: the tag of each token, or
NO_TAG. `label`: unused. Legend: N words, V tags.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor

from ..messages import PromptError
from ..tensor_files import integers, parts_of
from .classification import name_outputs
from .objective import Feed, Objective, RowReader, Scores, TokenRow, text_of

if TYPE_CHECKING:
    from ..collate import Batch
    from ..tokenizer import Word

NO_TAG = -1
OUTSIDE = 0


def tag_names(labels: Sequence[str]) -> list[str]:
    """Of the model's outputs: tag 0 is outside; label i begins at 1 + 2 i and goes on at 2 + 2 i."""
    return ["O", *(f"{part}-{label}" for label in labels for part in "BI")]


@dataclass(frozen=True, slots=True)
class Span:
    """Words `first` to `last`, both inside; `label` by number."""

    first: int
    last: int
    label: int


def spans_of(tags: Sequence[int]) -> list[Span]:
    """An I that follows nothing of its label begins a span, as in the CoNLL scorer."""
    spans: list[Span] = []
    for word, tag in enumerate(tags):
        if tag == OUTSIDE:
            continue
        label, inside = divmod(tag - 1, 2)
        goes_on = bool(inside) and bool(spans) and spans[-1].label == label and spans[-1].last == word - 1
        if goes_on:
            spans[-1] = Span(spans[-1].first, word, label)
        else:
            spans.append(Span(word, word, label))
    return spans


class Entities(Objective):
    auto_class = "AutoModelForTokenClassification"
    peft_task = "TOKEN_CLS"
    reads = "tokens"
    has_head = True

    def configure(self, config: Any, labels: Sequence[str] | None) -> None:
        if labels is not None:
            name_outputs(config, tag_names(labels))

    def encode(self, row: Mapping[str, Any], reader: RowReader) -> list[TokenRow]:
        given = row.get("entities")
        if not isinstance(given, list):
            raise PromptError(
                "row_kind", "The row has no list 'entities': it is of another kind than the task."
            )
        text = text_of(row, "text")
        found = reader.prompts.tagged_text(text, reader.max_length)
        tags = _tags(found.words, cast("list[dict[str, Any]]", given), reader.labels or ())
        aux = [NO_TAG] * len(found.ids)
        for word, tag in zip(found.words, tags, strict=True):
            aux[word.token] = tag
        return [TokenRow(found.ids, aux, 0, truncated=found.truncated)]

    def feeds(self, ids: Tensor, aux: Tensor, label: Tensor) -> list[Feed]:
        places = (aux != NO_TAG).nonzero()[:, 0]
        return [Feed(ids, places, aux[places])]

    def num_targets(self, num_rows: int, aux: Tensor) -> int:
        return int((aux != NO_TAG).sum())

    def scores(self) -> Scores:
        return _EntityScores()


def _tags(words: Sequence["Word"], entities: Sequence[Mapping[str, Any]], known: Sequence[str]) -> list[int]:
    """Raises PromptError for a label that is not the run's, and where two spans share a word."""
    tags = [OUTSIDE] * len(words)
    for entity in entities:
        start, end, label = int(entity["start"]), int(entity["end"]), entity["label"]
        if label not in known:
            raise PromptError(
                "unknown_label", f"The label {label!r} is none of the run's {len(known)} labels."
            )
        begin = 1 + 2 * known.index(label)
        inside = [index for index, word in enumerate(words) if word.start < end and word.end > start]
        taken = next((index for index in inside if tags[index] != OUTSIDE), None)
        if taken is not None:
            raise PromptError(
                "entities_share_word",
                f"Two entities meet in the word at characters {words[taken].start} to {words[taken].end}, "
                "and this model's tokenizer keeps it whole. Put a space between them, or mark one of them.",
            )
        for index in inside:
            tags[index] = begin if index == inside[0] else begin + 1
    return tags


class _EntityScores(Scores):
    """A span counts when its words and its label are right, all of them."""

    def __init__(self) -> None:
        self._hits, self._guessed, self._wanted = 0, 0, 0
        self._right, self._words = 0, 0

    def add(self, logits_NV: Tensor, batch: "Batch") -> None:
        counts = batch.target_counts
        guesses, targets = logits_NV.argmax(dim=-1), batch.targets_N
        self._right += int((guesses == targets).sum())
        self._words += len(targets)
        for guess, target in zip(parts_of(guesses, counts), parts_of(targets, counts), strict=True):
            found, wanted = set(spans_of(integers(guess))), set(spans_of(integers(target)))
            self._hits += len(found & wanted)
            self._guessed += len(found)
            self._wanted += len(wanted)

    def metrics(self, mean_loss: float) -> dict[str, float]:
        return {
            "entity_precision": self._hits / max(1, self._guessed),
            "entity_recall": self._hits / max(1, self._wanted),
            "entity_f1": 2 * self._hits / max(1, self._guessed + self._wanted),
            "word_accuracy": self._right / self._words,
        }
