"""Texts that belong together lie close: an anchor shall be nearer to its positive than to every other row's
positive and to every negative of its step (multiple negatives ranking, Henderson et al. 2017).

    loss = cross entropy of SCALE * cosine(anchor, candidate), the own positive being right

`ids`: anchor, positive and negative, if there is one. `aux`: the number of tokens of each. `label`: unused.
Targets are roles: 0 anchor, 1 positive, 2 negative. Legend: N texts, A anchors, C candidates, E width.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from ..loss import LossSum, summed_cross_entropy
from ..tensor_files import integers, parts_of
from .objective import Feed, Objective, RowReader, Scores, TokenRow, text_of

if TYPE_CHECKING:
    from ..collate import Batch

# Inverse temperature, as sentence-transformers has it.
SCALE = 20.0
_ROWS_RANKED_AT_ONCE = 256
_PARALLEL = 0.99


class Embedding(Objective):
    auto_class = "AutoModel"
    peft_task = "FEATURE_EXTRACTION"
    reads = "vectors"
    has_head = False
    joint = True

    def encode(self, row: Mapping[str, Any], reader: RowReader) -> list[TokenRow]:
        names = ["anchor", "positive", *(["negative"] if row.get("negative") is not None else [])]
        texts = [
            reader.prompts.classification_text(text_of(row, name), None, reader.max_length) for name in names
        ]
        ids = [i for text in texts for i in text.ids]
        lengths = [len(text.ids) for text in texts]
        return [TokenRow(ids, lengths, 0, truncated=any(text.truncated for text in texts))]

    def feeds(self, ids: Tensor, aux: Tensor, label: Tensor) -> list[Feed]:
        parts = parts_of(ids, integers(aux))
        return [Feed(one, ids.new_zeros(1), torch.tensor([role])) for role, one in enumerate(parts)]

    def num_targets(self, num_rows: int, aux: Tensor) -> int:
        return num_rows

    def num_losses(self, batch: "Batch") -> float:
        return self.num_answers(batch)

    def num_answers(self, batch: "Batch") -> int:
        return int((batch.targets_N == 0).sum())

    def row_of(self, batch: "Batch") -> Tensor:
        return (batch.targets_N == 0).cumsum(0) - 1

    def loss(self, logits_NV: Tensor, batch: "Batch", smoothing: float) -> LossSum:
        """`logits_NV`: the vectors of all texts of the step, N x E."""
        anchors_AE, candidates_CE = _sides(logits_NV, batch.targets_N)
        right_A = torch.arange(len(anchors_AE), device=logits_NV.device)
        return summed_cross_entropy(SCALE * (anchors_AE @ candidates_CE.t()), right_A, smoothing)

    def same(self, one_NV: Tensor, other_NV: Tensor) -> Tensor:
        """Vectors as good as parallel."""
        return functional.cosine_similarity(one_NV, other_NV, dim=-1) > _PARALLEL

    def scores(self) -> Scores:
        return _Retrieval()


def _sides(vectors_NE: Tensor, roles_N: Tensor) -> tuple[Tensor, Tensor]:
    """Anchors, and candidates that begin with the anchors' positives in their order; of length 1."""
    unit_NE = functional.normalize(vectors_NE.float(), dim=-1)
    anchors, positives, negatives = (unit_NE[roles_N == role] for role in range(3))
    return anchors, torch.cat([positives, negatives])


class _Retrieval(Scores):
    """Each anchor looks for its positive among all positives and negatives that were evaluated."""

    def __init__(self) -> None:
        self._vectors, self._roles = list[Tensor](), list[Tensor]()

    def add(self, logits_NV: Tensor, batch: "Batch") -> None:
        self._vectors.append(logits_NV.float().cpu())
        self._roles.append(batch.targets_N.cpu())

    def metrics(self, mean_loss: float) -> dict[str, float]:
        anchors_AE, candidates_CE = _sides(torch.cat(self._vectors), torch.cat(self._roles))
        ranks: list[Tensor] = []
        for start in range(0, len(anchors_AE), _ROWS_RANKED_AT_ONCE):
            likeness = anchors_AE[start : start + _ROWS_RANKED_AT_ONCE] @ candidates_CE.t()
            own = likeness.gather(1, torch.arange(start, start + len(likeness))[:, None])
            # One that is as near as the own positive is no find: it counts before it.
            ranks.append((likeness >= own).sum(dim=1))
        rank_A = torch.cat(ranks).double()
        return {
            "accuracy_at_1": float((rank_A == 1).double().mean()),
            "mrr_at_10": float(torch.where(rank_A <= 10, 1 / rank_A, 0.0).mean()),
        }
