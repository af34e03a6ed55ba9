"""What a run will hold at its peak on a CPU, told before its first step, by parts.

    process + weights + gradients + moments + activations + logits + products

All but the last are counted, from the model as it was loaded and from the largest micro-batch of the run's
own rows. `products` is measured (npm run bench -- memory): what oneDNN keeps of each size of product it has
met, and the gaps that tensors of many sizes leave between each other. `Room` keeps those gaps few.

Legend: N positions learnt, V vocabulary.
"""

import ctypes
import math
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal, cast

import torch
from torch import nn

from .collate import Collator, bounds_tokens, evaluation_batches, micro_batches
from .data import TokenRows
from .events import rss_bytes
from .four_bits import four_bit_layers
from .kernels import passes
from .kernels.head_loss import rooms
from .light_start import product_kinds
from .memory_layers import Keeps, Layers
from .models import Loaded
from .plan import Plan
from .run_rows import RunRows
from .sampling import Windows
from .spec import Task, TrainSpec
from .tasks import Objective, objective_of

_FLOAT = 4
_MOMENTS = 2 * _FLOAT
# Measured: what loading brings beside weights (tokenizer, the model's modules), and pages of libraries that
# the first step reads.
_LATER = 45e6
# Measured: a prepared product, and after how many batches two thirds of those that are kept are there. In
# fp32 others do the work, which keep little.
_PRODUCT, _PRODUCTS_FP32, _PRODUCTS_AFTER = 0.67e6, 11e6, 6
# Measured: gaps between what a way back needs, as a part of it, and never more than so many; tensors of fp32
# are larger, and so are the gaps that none of them fits into.
_GAPS, _MOST_GAPS, _MOST_GAPS_FP32 = 0.9, 100e6, 150e6
# Rows of the epochs that are looked through for the largest micro-batch: part of a second.
_LOOKED_THROUGH = 50_000
# The very first micro-batch, another of the first step, or a later one.
_Turn = Literal["first", "first step", "later"]
# Layers that our kernels join into one product, and so copy when they are trained.
_JOINED = re.compile(r"(?:q_proj|k_proj|v_proj|query|key|value|SelfAttention\.[qkv]|EncDecAttention\.[kv])$")


def give_back() -> None:
    """Pages that hold nothing go back to the system. Tensors of another size than before do not fit where
    those lay: each would come on top of all that was ever freed. Only glibc needs to be told."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


class Room:
    """Keeps a process near what was predicted for it: the gaps between tensors of many sizes would grow from
    batch to batch. Fresh pages cost time, so they are given back only when there are too many: before a batch
    so much larger than all before it that more than predicted might be held, and when more is held than was
    predicted and the largest batch has left."""

    def __init__(
        self,
        predicted: "Memory",
        held: Callable[[], int] = rss_bytes,
        release: Callable[[], None] = give_back,
    ) -> None:
        self._bound, self._held, self._release = predicted.total, held, release
        self._fixed = predicted.total - predicted.activations - predicted.logits
        self._largest = 0
        self._is_after_largest = False

    def before(self, size: int) -> None:
        """`size`: of the batch that begins, in positions."""
        held = self._held()
        if self._is_after_largest:
            self._bound = max(self._bound, held)
        before, self._largest = self._largest, max(self._largest, size)
        self._is_after_largest = size > before
        if self._is_after_largest and before:
            held = self._fixed + max(0, held - self._fixed) * size // before
        if held > self._bound or not before:
            self._release()


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Bytes. `process`: Python and its libraries."""

    process: int
    weights: int
    gradients: int
    moments: int
    activations: int
    logits: int
    products: int

    @property
    def total(self) -> int:
        return sum(self.parts().values())

    @property
    def of_steps(self) -> int:
        """Beside the model and its libraries, and what oneDNN keeps: all that a GPU must have room for."""
        return self.gradients + self.moments + self.activations + self.logits

    def parts(self) -> dict[str, int]:
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """`dtype`: of the products."""

    spec: TrainSpec
    dtype: torch.dtype
    plan: Plan
    rows_per_batch: int

    @property
    def task(self) -> Task:
        return self.spec.task

    @classmethod
    def of(cls, spec: TrainSpec, plan: Plan, dtype: torch.dtype, *, rows_per_batch: int | None) -> "Work":
        """`rows_per_batch`: where an earlier attempt found that fewer fit than the spec says."""
        rows = rows_per_batch or spec.hyperparameters.per_device_train_batch_size
        return cls(spec=spec, dtype=dtype, plan=plan, rows_per_batch=rows)


def predict(
    loaded: Loaded, work: Work, rows: RunRows, *, process_bytes: int, keeps: Keeps = "everything"
) -> Memory:
    """`process_bytes`: resident before the model was loaded."""
    layers = Layers.of(loaded, work.dtype, work.task)
    trained = sum(parameter.numel() for parameter in loaded.trainable().values())
    collate = Collator(
        work.task, loaded.packed, loaded.pad_id, loaded.start_id, fills=loaded.kernels is not None
    )
    gradients, moments = trained * _FLOAT, trained * _MOMENTS
    widest = (0, 0, 0)
    for turn, chosen in _largest(work, rows.train, by_length=not loaded.packed, device=loaded.model.device):
        batch = collate(rows.train, chosen)
        activations = layers.bytes_of(batch, keeps)
        logits = _learning_logits(loaded, work, len(batch.gather_N))
        products = _products(work, activations + logits if any(layers.kept) else 0)
        # What is not there yet leaves its room: moments in the first step, before it gradients and gaps too.
        free = {"first": gradients + moments + products, "first step": moments, "later": 0}[turn]
        widest = max(widest, (max(0, activations - free), logits, products), key=sum)
    activations, logits, products = widest
    answered = _answering(loaded, work, rows.validation, layers=layers, collate=collate)
    return Memory(
        process=int(process_bytes + _LATER),
        weights=_weight_bytes(loaded, work.dtype),
        gradients=gradients,
        moments=moments,
        activations=activations,
        # An evaluation keeps no activations, and comes when those are gone.
        logits=max(logits, answered - activations),
        products=products,
    )


def _products(work: Work, learning_bytes: int) -> int:
    batches = work.plan.total_steps * -(-work.plan.rows_per_step // work.rows_per_batch)
    if work.dtype == torch.float32:
        prepared, most_gaps = _PRODUCTS_FP32, _MOST_GAPS_FP32
    else:
        prepared, most_gaps = _PRODUCT * product_kinds(work.spec), _MOST_GAPS
    return int(prepared * (1 - math.exp(-batches / _PRODUCTS_AFTER)) + min(_GAPS * learning_bytes, most_gaps))


def _largest(
    work: Work, rows: TokenRows, *, by_length: bool, device: torch.device
) -> Iterator[tuple[_Turn, list[int]]]:
    """Micro-batches that may take most: of each turn that of most tokens, and that of the longest rows."""
    lengths = rows.lengths
    best: dict[tuple[_Turn, int], tuple[int, list[int]]] = {}
    windows = Windows(work.spec, rows, work.plan.rows_per_step, by_length=by_length)
    bound = lengths if bounds_tokens(device, joint=objective_of(work.task).joint) else None
    epochs = work.plan.total_steps // work.plan.steps_per_epoch
    turn: _Turn = "first"
    for epoch in range(min(epochs, max(1, _LOOKED_THROUGH // len(rows)))):
        for window in windows.of(epoch):
            for chosen in micro_batches(window, work.rows_per_batch, bound):
                for power in (1, 2):
                    size = sum(lengths[row] ** power for row in chosen)
                    if size > best.get((turn, power), (0, []))[0]:
                        best[turn, power] = size, chosen
                turn = "first step" if turn == "first" else turn
            turn = "later"
    return ((turn, chosen) for (turn, _), (_, chosen) in best.items())


def _answering(loaded: Loaded, work: Work, rows: TokenRows, *, layers: Layers, collate: Collator) -> int:
    """At the widest moment of an evaluation, whose first batch is its largest."""
    if len(rows) == 0:
        return 0
    first, *others = evaluation_batches(rows, work.rows_per_batch)
    batch = collate(rows, first)
    # In fp32 and their logarithms; or those of the batch before, these, and these in fp32.
    bytes_each = 2 * _FLOAT + (_short(work) if others and work.dtype != torch.float32 else 0)
    logits = len(batch.gather_N) * _vocabulary(loaded, work.task) * bytes_each
    return layers.passing(batch) + logits


def _weight_bytes(loaded: Loaded, dtype: torch.dtype) -> int:
    """With the copies that products read: of another type, and of trained layers that are joined."""
    model: Any = loaded.model
    total = sum(p.numel() * p.element_size() for p in cast("Iterator[nn.Parameter]", model.parameters()))
    total += sum(layer.num_bytes for layer in four_bit_layers(model))
    for name, module in cast("Iterator[tuple[str, nn.Module]]", model.named_modules()):
        if not isinstance(module, nn.Linear):
            continue
        joined = loaded.kernels is not None and module.weight.requires_grad and _JOINED.search(name)
        if module.weight.dtype != dtype or joined:
            total += module.weight.numel() * (torch.finfo(dtype).bits // 8)
    return total


def _short(work: Work) -> int:
    return torch.finfo(work.dtype).bits // 8


def _vocabulary(loaded: Loaded, task: Task) -> int:
    if objective_of(task).reads != "vocabulary":
        return 0
    return int(loaded.model.config.get_text_config().vocab_size)


def _learning_logits(loaded: Loaded, work: Work, learnt: int) -> int:
    vocabulary, short = _vocabulary(loaded, work.task), _short(work)
    plain = type(objective_of(work.task)).loss is Objective.loss
    if not plain or not loaded.in_pieces(learnt):
        # Themselves, in fp32, their logarithms, and the gradient.
        return learnt * vocabulary * (short + 3 * _FLOAT)
    head = loaded.model.get_output_embeddings()
    if head is None or not vocabulary:
        return 0
    at_once, most_kept = rooms(head.weight)
    piece = min(learnt * vocabulary * _FLOAT, at_once)
    # In fp32 as well, but where one kernel reads and writes them as they are.
    wide = short != _FLOAT and passes.on_gpu(work.dtype, loaded.model.device) is None
    exact = piece if wide else 0
    if not head.weight.requires_grad:
        return exact + piece * short // _FLOAT
    all_of_them = learnt * vocabulary * short
    kept = min(all_of_them, most_kept)
    # The weight's gradient; of several groups the sum of those before, in fp32, and the first of them.
    made = short if all_of_them <= kept else 2 * short + (_FLOAT if short != _FLOAT else 0)
    return exact + kept + made * head.weight.numel()
