"""What a run tells of itself: the model it trains, the rows it found, each step."""

from collections.abc import Sequence

from .checkpoint import Progress
from .compared import Compared
from .data import Dataset, TokenRows
from .events import EventLog
from .four_bits import Linear4, four_bit_layers
from .memory import Memory
from .models import Loaded
from .plan import Plan
from .spec import Task
from .step import StepResult

_MOST_TOLD = 8
_BEFORE = ", as an earlier run of these weights found"


def tell_model(log: EventLog, loaded: Loaded, asked_length: int, *, compared: Compared) -> None:
    trainable = sum(parameter.numel() for parameter in loaded.trainable().values())
    small = list(four_bit_layers(loaded.model))
    total = sum(parameter.numel() for parameter in loaded.model.parameters())
    total += sum(layer.shape.numel() for layer in small)
    whole = loaded.packed or loaded.kernels is not None
    how = "laid end to end, without padding" if whole else "padded within batches of like length"
    layers = loaded.layers
    if compared.was_spared and loaded.kernels is not None:
        layers += _BEFORE
    elif compared.was_spared:
        how += _BEFORE
    log.log(
        "info",
        f"{trainable:,} of {total:,} weights are trained; rows are {how}; {layers}.",
        trainable=trainable,
        total=total,
        packed=loaded.packed,
        fused=loaded.kernels is not None,
    )
    if small:
        _tell_four_bits(log, small)
    if loaded.max_length < asked_length:
        log.log("warn", f"max_length {asked_length} is lowered to the {loaded.max_length} the model takes.")


def _tell_four_bits(log: EventLog, layers: Sequence[Linear4]) -> None:
    now = sum(layer.num_bytes for layer in layers)
    before = sum(layer.shape.numel() * layer.dtype.itemsize for layer in layers)
    log.log(
        "info",
        f"{len(layers)} frozen layers are kept in 4 bits: {now / 1e9:.3g} GB instead of {before / 1e9:.3g}. "
        "The adapter is saved for the base as it is, and served, merged and exported over that: its answers "
        "there differ a little from those in training, by what rounding to 4 bits changed.",
        four_bit_bytes=now,
        bytes_before=before,
    )


def tell_rows(
    log: EventLog,
    dataset: Dataset,
    validation: TokenRows,
    *,
    task: Task,
    plan: Plan,
    memory: Memory | None,
) -> None:
    rows = dataset.rows
    log.write(
        "data",
        num_train_rows=len(rows),
        num_validation_rows=len(validation),
        num_train_tokens=sum(rows.num_tokens(row) for row in range(len(rows))),
        num_label_tokens=rows.num_label_tokens(task),
        num_truncated=dataset.num_truncated,
        refused=[{"line": r.line, "rule": r.rule, "message": r.message} for r in dataset.refused],
        num_refused=dataset.num_refused,
        total_steps=plan.total_steps,
        memory=None if memory is None else memory.parts(),
    )
    if len(validation) == 0:
        log.log(
            "info",
            "There are no rows to validate on: nothing is evaluated, the run does not end early, "
            "and the last step becomes the model.",
        )
    if memory is not None:
        _tell_memory(log, memory)


def _tell_memory(log: EventLog, memory: Memory) -> None:
    parts = sorted(memory.parts().items(), key=lambda part: -part[1])
    told = ", ".join(f"{name} {size / 1e9:.2f}" for name, size in parts)
    log.log("info", f"About {memory.total / 1e9:.2f} GB of memory will be in use at the peak: {told}.")


def tell_weights(log: EventLog, weights: Sequence[float], labels: Sequence[str]) -> None:
    """Of classes or labels, where the run weighs them; classes after the last that occurs have none."""
    if not weights:
        return
    named = sorted(zip(weights, labels, strict=False), reverse=True)
    shown = ", ".join(f'"{label}" {weight:.3g}' for weight, label in named[:_MOST_TOLD])
    more = len(named) - _MOST_TOLD
    log.log(
        "info",
        f"Weights: {shown}{f' and {more} more' if more > 0 else ''}.",
        weights={label: weight for weight, label in named},
    )


def tell_fewer_rows(log: EventLog, progress: Progress, plan: Plan, *, before: int, lack: str) -> None:
    """`progress` is that with half as many rows at once, `before` how many they were."""
    rows = progress.rows_per_batch
    log.log(
        "warn",
        f"Memory did not suffice for {before} rows at once ({lack}): from step {progress.step + 1} on "
        f"micro-batches have {rows}. A step still learns {plan.rows_per_step} rows, each token weighted as "
        "before.",
        rows_per_batch=rows,
    )


def tell_other_layers(log: EventLog, *, before: str, now: str) -> None:
    """`before` is empty in checkpoints that know nothing of it."""
    if before and before != now:
        log.log("warn", f"From here on {now}; before, {before}: equal within rounding, not to the bit.")


def tell_step(
    log: EventLog, progress: Progress, plan: Plan, *, result: StepResult, rate: float, seconds: float
) -> None:
    """`progress` is that after the step."""
    log.write(
        "step",
        step=progress.step,
        epoch=progress.step / plan.steps_per_epoch,
        train_loss=result.loss,
        train_mean_token_accuracy=result.accuracy,
        learning_rate=rate,
        grad_norm=result.grad_norm,
        num_tokens=progress.num_tokens,
        tokens_per_second=result.num_tokens / max(seconds, 1e-9),
        eta_seconds=(plan.total_steps - progress.step) * progress.train_seconds / progress.step,
    )
