"""Forward and backward of micro-batches, and evaluation: the same code for both."""

from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from .collate import Batch, Collator, evaluation_batches
from .data import TokenRows
from .distributed import ALONE, Ranks
from .features import Features, head_logits, hidden_of, why_not
from .joint import joint_gradients, joint_loss, pooled
from .kernels.head_loss import head_loss
from .kernels.projection import Projection
from .loss import LossSum
from .models import Loaded
from .packing import answers_at, segments
from .spec import Task
from .tasks import Objective, objective_of


@dataclass(frozen=True, slots=True)
class StepResult:
    """`loss`: mean over what the objective counts: labelled tokens, or rows. `grad_norm`: before clipping."""

    loss: float
    accuracy: float
    grad_norm: float
    num_tokens: int


@dataclass(frozen=True, slots=True)
class Evaluation:
    loss: float
    accuracy: float
    metrics: dict[str, float]


class Stepper:
    """Holds no state between steps but what it has been told to `remember`. `dtype` other than fp32 runs the
    forward under autocast."""

    def __init__(
        self,
        loaded: Loaded,
        task: Task,
        *,
        dtype: torch.dtype = torch.float32,
        smoothing: float = 0.0,
        objective: Objective | None = None,
    ) -> None:
        self.loaded = loaded
        self._model = loaded.model
        self._smoothing = smoothing
        self.task: Task = task
        self.objective = objective or objective_of(task)
        self.dtype = dtype
        self.device = cast("torch.device", loaded.model.device)
        self.collate = Collator(
            task, loaded.packed, loaded.pad_id, loaded.start_id, fills=loaded.kernels is not None
        )
        self._plain = type(self.objective).loss is Objective.loss and self.objective.reads == "vocabulary"
        # Of a model with its own layers; made when it is first needed.
        self._own_head: Projection | None = None
        # What the loss of the step at hand is made behind, piece by piece.
        self._head: Projection | None = None
        # What a frozen base made of the rows of a set, by the set's identity.
        self._features: dict[int, Features] = {}

    def train_step(
        self,
        rows: TokenRows,
        micro: Sequence[Sequence[int]],
        begin: Callable[[int], None],
        *,
        ranks: Ranks = ALONE,
    ) -> tuple[float, float, int]:
        """Gradients of one window are left in the parameters, divided by its labelled tokens: the same
        however it is cut, and on however many ranks. Returns loss, accuracy, tokens. `begin` is called before
        each micro-batch with its size, padding and all."""
        self._refresh()
        batches = [self._batch(rows, chosen) for chosen in micro]
        num_losses = sum(self.objective.num_losses(batch) for batch in batches)
        num_answers = sum(self.objective.num_answers(batch) for batch in batches)
        num_tokens = sum(batch.num_tokens for batch in batches)
        self._head = self._head_of(batches)
        if self.objective.joint:
            total, correct = self._joint(batches, num_losses, begin)
            return total / num_losses, correct / num_answers, num_tokens
        total, correct = 0.0, 0
        for batch, counts in ranks.share(batches):
            begin(_size(batch))
            loss = self.loss(batch.to(self.device), self._smoothing)
            cast("Any", loss.total * counts / num_losses).backward()
            total += counts * float(loss.total.detach())
            correct += counts * loss.num_correct
        ranks.add_up(self.loaded.trainable().values())
        total, correct = ranks.totals(total, correct)
        return total / num_losses, correct / num_answers, num_tokens

    def _joint(
        self, batches: Sequence[Batch], num_losses: float, begin: Callable[[int], None]
    ) -> tuple[float, int]:
        def answer(batch: Batch) -> Tensor:
            begin(_size(batch))
            return self.logits(batch.to(self.device))

        def losses(vectors_NE: Tensor, together: Batch) -> LossSum:
            return self.objective.loss(vectors_NE, together.to(self.device), self._smoothing)

        return joint_gradients(batches, answer, losses, num_losses=num_losses)

    def _refresh(self) -> None:
        """Weights change between calls alone."""
        if self.loaded.kernels is not None:
            self.loaded.kernels.refresh()

    def _head_of(self, batches: Sequence[Batch]) -> Projection | None:
        """For all of a step alike: the first gradient made behind a head replaces what its weight has."""
        if not self._plain or not any(self.loaded.in_pieces(len(batch.gather_N)) for batch in batches):
            return None
        if self.loaded.kernels is not None:
            return self.loaded.kernels.head
        if self._own_head is None:
            self._own_head = Projection([self._model.get_output_embeddings()], self.dtype)
        self._own_head.refresh()
        return self._own_head

    def _batch(self, rows: TokenRows, chosen: Sequence[int]) -> Batch:
        known = self._features.get(id(rows))
        return self.collate(rows, chosen) if known is None else known.batch(list(chosen))

    @torch.no_grad()
    def remember(self, rows: TokenRows, rows_per_batch: int, begin: Callable[[int], None]) -> str:
        """Runs a frozen base once over `rows`, which must live as long as this object: later steps and
        evaluations begin at the head. Returns why not, or nothing. `begin` as in `train_step`."""
        reason = "the task asks every token" if self.objective.reads != "rows" else ""
        reason = reason or why_not(self._model, self.loaded.head_modules, len(rows))
        if reason or len(rows) == 0:
            return reason
        self._refresh()
        self._model.eval()
        hidden_NE, targets = torch.empty(0), list[Tensor]()
        order: list[int] = []
        try:
            for chosen in evaluation_batches(rows, rows_per_batch):
                batch = self.collate(rows, chosen)
                begin(_size(batch))
                batch = batch.to(self.device)
                with self._autocast(), self._segments(batch):
                    hidden_BE = hidden_of(self._model, _inputs(batch), batch).float()
                if not order:
                    reason = self._unlike(batch, hidden_BE)
                    if reason:
                        return reason
                    hidden_NE = hidden_BE.new_empty(len(rows), hidden_BE.shape[1])
                hidden_NE[torch.tensor(chosen)] = hidden_BE
                targets.append(batch.targets_N)
                order += chosen
        finally:
            self.loaded.set_training()
        place = torch.tensor(order).argsort()
        tokens = [rows.num_tokens(row) for row in range(len(rows))]
        self._features[id(rows)] = Features(hidden_NE, torch.cat(targets)[place], tokens, rows.reference)
        return ""

    def _unlike(self, batch: Batch, hidden_BE: Tensor) -> str:
        if len(batch.targets_N) != len(batch.rows):
            return "the task asks more than one answer a row"
        expected = self.logits(batch).float()
        try:
            with self._autocast():
                found = head_logits(self._model, hidden_BE, packed=batch.lengths is not None).float()
        except (TypeError, ValueError, RuntimeError, KeyError, IndexError) as error:
            return f"this head reads more than one token ({type(error).__name__})"
        alike = found.shape == expected.shape and torch.allclose(found, expected, rtol=1e-4, atol=1e-5)
        return "" if alike else "this head reads more than one token"

    @torch.no_grad()
    def references(self, rows: TokenRows, rows_per_batch: int, begin: Callable[[int], None]) -> Tensor:
        """R x K in fp32, what the objective keeps of the model's answers to each row. `begin` as above."""
        self._refresh()
        self._model.eval()
        kept, order = list[Tensor](), list[int]()
        try:
            for chosen in evaluation_batches(rows, rows_per_batch):
                batch = self._batch(rows, chosen)
                begin(_size(batch))
                batch = batch.to(self.device)
                kept.append(self.objective.reference(self.logits(batch).float(), batch).float().cpu())
                order += chosen
        finally:
            self.loaded.set_training()
        return torch.cat(kept)[torch.tensor(order).argsort()]

    def loss(self, batch: Batch, smoothing: float) -> LossSum:
        if self._head is not None and torch.is_grad_enabled():
            return self._head_loss(self._head, batch, smoothing)
        return self.objective.loss(self.logits(batch), batch, smoothing)

    def logits(self, batch: Batch) -> Tensor:
        """N x V at the batch's gathered positions."""
        with self._autocast():
            if batch.features is not None:
                return head_logits(self._model, batch.features, packed=self.loaded.packed)
            if self.objective.reads == "rows":
                return self._class_logits(batch)
            if self.objective.reads == "vocabulary":
                return self._token_logits(batch)
            with self._segments(batch):
                output = self._model(**_inputs(batch))
        return self._read(output, batch)

    def _read(self, output: Any, batch: Batch) -> Tensor:
        """A small head's answers at the gathered places, or vectors."""
        if self.objective.reads == "vectors":
            return pooled(output.last_hidden_state, batch, self.loaded.pooling)
        if self.objective.reads == "spans":
            answers_BLV = torch.stack([output.start_logits, output.end_logits], dim=-1)
        else:
            answers_BLV = cast("Tensor", output.logits)
        return answers_BLV.flatten(0, 1).index_select(0, batch.gather_N)

    @torch.no_grad()
    def answers(self, rows: TokenRows, chosen: Sequence[int]) -> Tensor:
        """Logits in fp32 without dropout, N x V."""
        self._refresh()
        self._model.eval()
        return self.logits(self.collate(rows, chosen).to(self.device)).float().cpu()

    def _token_logits(self, batch: Batch) -> Tensor:
        with self._gathering(batch.gather_N), self._segments(batch):
            return cast("Tensor", self._model(**_inputs(batch)).logits).reshape(batch.gather_N.numel(), -1)

    def _class_logits(self, batch: Batch) -> Tensor:
        if batch.lengths is None:
            with self._segments(batch):
                return cast("Tensor", self._model(**_inputs(batch)).logits)
        with self._segments(batch):
            hidden = cast("Tensor", self._model.base_model(**_inputs(batch)).last_hidden_state)
            hidden = answers_at(hidden, batch.gather_N)
        return cast("Tensor", self._model.score(hidden))

    def _head_loss(self, head: Projection, batch: Batch, smoothing: float) -> LossSum:
        with self._autocast(), self._gathering(batch.gather_N, instead=True), self._segments(batch):
            hidden_NE = cast("Tensor", self._model(**_inputs(batch)).logits)[0]
        total, correct = head_loss(hidden_NE, batch.targets_N, head, smoothing=smoothing)
        return LossSum(total, int(correct))

    @contextmanager
    def _gathering(self, positions_N: Tensor, *, instead: bool = False) -> Generator[None]:
        """The output head sees the labelled positions alone: the largest product of a small model shrinks to
        what is learnt, and what the model does after it (soft-capping, bias) stays its own. `instead`: the
        head is left out, and what it would have read comes out."""
        head = cast("nn.Module", self._model.get_output_embeddings())

        def gathered(hidden: Tensor) -> Tensor:
            return answers_at(hidden, positions_N)[None]

        if instead:
            head.forward = gathered
        handle = None if instead else head.register_forward_pre_hook(lambda _, args: (gathered(args[0]),))
        try:
            yield
        finally:
            if handle is None:
                del head.forward
            else:
                handle.remove()

    def _segments(self, batch: Batch) -> AbstractContextManager[None]:
        """For layers that look at rows without their padding."""
        if self.loaded.kernels is None and batch.lengths is None:
            return nullcontext()
        kernels = self.loaded.kernels
        reads = kernels.reads(batch) if self.objective.reads_some and kernels is not None else None
        return segments(batch.row_lengths, batch.target_lengths, reads=reads)

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)

    @torch.no_grad()
    def evaluate(self, rows: TokenRows, rows_per_batch: int, begin: Callable[[int], None]) -> Evaluation:
        """Mean loss without smoothing over all labelled tokens, and the task's metrics. Memory does not grow
        with the number of rows: each batch leaves three numbers, and what its metrics count (of vectors:
        them). `begin` as above."""
        self._refresh()
        self._model.eval()
        total, correct, losses, count = 0.0, 0, 0.0, 0
        scores = self.objective.scores()
        vectors, batches = list[Tensor](), list[Batch]()
        try:
            for chosen in evaluation_batches(rows, rows_per_batch):
                batch = self._batch(rows, chosen)
                begin(_size(batch))
                batch = batch.to(self.device)
                logits = self.logits(batch).float()
                losses += self.objective.num_losses(batch)
                count += self.objective.num_answers(batch)
                scores.add(logits, batch)
                if self.objective.joint:
                    vectors.append(logits)
                    batches.append(batch)
                    continue
                loss = self.objective.loss(logits, batch, 0.0)
                total += float(loss.total)
                correct += loss.num_correct
        finally:
            self.loaded.set_training()
        if self.objective.joint:
            total, correct = joint_loss(torch.cat(vectors), batches, self.objective)
        mean = total / losses
        return Evaluation(mean, correct / count, scores.metrics(mean))


def _size(batch: Batch) -> int:
    """Positions the model computes."""
    written = batch.decoder_input_ids
    return batch.input_ids.numel() + (0 if written is None else written.numel())


def _inputs(batch: Batch) -> dict[str, Any]:
    named = {
        "input_ids": batch.input_ids,
        "attention_mask": batch.attention_mask,
        "position_ids": batch.position_ids,
        "token_type_ids": batch.token_type_ids,
        "decoder_input_ids": batch.decoder_input_ids,
    }
    inputs: dict[str, Any] = {name: value for name, value in named.items() if value is not None}
    if batch.position_ids is not None or batch.decoder_input_ids is not None:
        inputs["use_cache"] = False
    return inputs
